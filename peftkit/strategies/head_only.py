"""Only the head trains (linear probing): the task's, freshly made, or the model's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from peftkit.errors import ModelError
from peftkit.models.inspect import head_paths, places
from peftkit.strategies.freezing import Freezing, contents
from peftkit.strategies.trunk import CachesTrunk

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


class HeadOnly(CachesTrunk, Freezing, name="head_only"):
    """What lies outside the base model trains: a classifier, or a language model's output layer if it is not tied."""

    def names(self, model: nn.Module) -> set[str]:
        return {name for name, place in places(model).items() if place.part == "head"}

    def adapt(self, model: PreTrainedModel, fresh: Sequence[str] = ()) -> nn.Module:
        if not fresh and not self.names(model):
            raise ModelError(f"--strategy head_only: {_why_none(model)}")
        return super().adapt(model, fresh)


def _why_none(model: nn.Module) -> str:
    kind = type(model).__name__
    tied = [name for name, place in places(model).items() if place.is_head_too]
    if not tied:
        return f"{kind} has no head; it has {contents(model)}"
    head = ", ".join(head_paths(model))
    return (
        f"the head of {kind} ({head}) is tied to the embeddings ({', '.join(tied)}), so it cannot train alone;"
        " use --strategy layerwise --strategy.embeddings true, which trains both, or lora or full"
    )
