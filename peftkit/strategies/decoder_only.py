"""Only the decoder trains."""

from __future__ import annotations

from typing import TYPE_CHECKING

from peftkit.strategies.freezing import Freezing, on_side
from peftkit.strategies.trunk import CachesTrunk

if TYPE_CHECKING:
    from torch import nn


class DecoderOnly(CachesTrunk, Freezing, name="decoder_only"):
    """The decoder's layers, norms and own embeddings train; the encoder, embeddings that both share and the head stay.

    A freshly made head trains all the same.
    """

    def names(self, model: nn.Module) -> set[str]:
        return on_side(model, "decoder", asked_by=self)
