"""Only the encoder trains."""

from __future__ import annotations

from typing import TYPE_CHECKING

from peftkit.strategies.freezing import Freezing, on_side
from peftkit.strategies.trunk import CachesTrunk

if TYPE_CHECKING:
    from torch import nn


class EncoderOnly(CachesTrunk, Freezing, name="encoder_only"):
    """The encoder's layers, norms and own embeddings train; the decoder, embeddings that both share and the head stay.

    A freshly made head trains all the same.
    """

    def names(self, model: nn.Module) -> set[str]:
        return on_side(model, "encoder", asked_by=self)
