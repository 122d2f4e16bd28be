"""Which weights train: one small file each."""

from peftkit.strategies.base import Strategy
from peftkit.strategies.decoder_only import DecoderOnly
from peftkit.strategies.encoder_only import EncoderOnly
from peftkit.strategies.full import Full
from peftkit.strategies.head_only import HeadOnly
from peftkit.strategies.layerwise import Layerwise
from peftkit.strategies.lora import Lora
from peftkit.strategies.qlora import Qlora

__all__ = ["DecoderOnly", "EncoderOnly", "Full", "HeadOnly", "Layerwise", "Lora", "Qlora", "Strategy"]
