"""Chosen layers train; with `unfreeze_every`, more of them from the top down (Howard & Ruder, 2018, https://arxiv.org/abs/1801.06146)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from peftkit.errors import ModelError
from peftkit.models.inspect import Stack, norm_parameters, places, stacks
from peftkit.strategies.freezing import Freezing, train_only
from peftkit.strategies.trunk import CachesTrunk

if TYPE_CHECKING:
    from torch import nn

RANGE = r"^(\w+(\.\w+)*\.)?\d+(-\d+)?$"
USUAL = 2
"""How many layers train where none are named."""


class Layerwise(CachesTrunk, Freezing, name="layerwise"):
    """Chosen layers train, by number or from either end; embeddings, norms and head can be switched on and off.

    What follows a stack's last layer (its last norm, a pooler) trains with that layer. A head that is tied to the
    embeddings trains with them.
    """

    last: NonNegativeInt | None = None
    """The last so many layers of each stack. With no layers named in any way: 2, or 0 with unfreeze_every."""
    first: NonNegativeInt | None = None
    """The first so many layers of each stack."""
    layers: list[Annotated[str, Field(pattern=RANGE)]] = []
    """Layers by number, from 0: [0-3] in each stack, [encoder.0-2, decoder.5] by side, or by a stack's whole name."""
    embeddings: bool = False
    """Embeddings train."""
    norms: bool = False
    """All norms train, wherever they lie."""
    head: bool = True
    """The model's own head trains. A freshly made one always does."""
    unfreeze_every: PositiveInt | None = None
    """Every so many steps the next layer down starts to train, until all do."""
    unfreeze_layers: PositiveInt = 1
    """How many layers each of these stages adds."""

    @model_validator(mode="after")
    def _one_way_to_grow(self) -> Self:
        if self.unfreeze_every and (self.first or self.layers):
            raise ValueError(
                "unfreeze_every adds layers from the top down: name the first ones with last, not first or layers"
            )
        return self

    @property
    def moves_trunk(self) -> str:
        return (
            "--strategy.unfreeze_every lets more of them train; leave out one of the two" if self.unfreeze_every else ""
        )

    def names(self, model: nn.Module, stage: int = 0) -> set[str]:
        chosen = self._layers(stacks(model), stage)
        ended = {stack for stack in stacks(model) if (stack, stack.layers - 1) in chosen}
        # In a gradual run the embeddings are the lowest layer of all: they come with the last stage.
        embeddings = self.embeddings and (not self.unfreeze_every or stage >= self.last_stage(model))
        switched = {"embeddings": embeddings, "head": self.head}
        return (norm_parameters(model) if self.norms else set()) | {
            name
            for name, place in places(model).items()
            if (place.stack, place.layer) in chosen
            or (place.part == "after" and place.stack in ended)
            or switched.get(place.part, False)
        }

    def stage(self, step: int) -> int:
        return step // self.unfreeze_every if self.unfreeze_every else 0

    def last_stage(self, model: nn.Module) -> int:
        if not self.unfreeze_every:
            return 0
        frozen = max((stack.layers for stack in stacks(model)), default=0) - (self.last or 0)
        layers = -(-max(0, frozen) // self.unfreeze_layers)
        return layers + (1 if self.embeddings else 0)

    def unfreeze(self, model: nn.Module, stage: int) -> None:
        training = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        train_only(model, training | self.names(model, stage), asked_by="--strategy layerwise")

    def _layers(self, found: Sequence[Stack], stage: int) -> set[tuple[Stack | None, int | None]]:
        """The chosen layers, as stack and number."""
        if not found:
            raise ModelError(
                "--strategy layerwise: this model has no stack of layers; use --strategy full or head_only"
            )
        top = self._top() + stage * self.unfreeze_layers
        chosen: set[tuple[Stack | None, int | None]] = set()
        for stack in found:
            chosen.update((stack, layer) for layer in range(max(0, stack.layers - top), stack.layers))
            chosen.update((stack, layer) for layer in range(min(self.first or 0, stack.layers)))
        for words in self.layers:
            chosen.update(_named(words, found))
        self._check_reach(found)
        return chosen

    def _top(self) -> int:
        if self.last is None:
            return 0 if self.first or self.layers or self.unfreeze_every else USUAL
        return self.last

    def _check_reach(self, found: Sequence[Stack]) -> None:
        deepest = max(stack.layers for stack in found)
        for flag, asked in (("last", self.last), ("first", self.first)):
            if asked and asked > deepest:
                raise ModelError(f"--strategy.{flag} {asked}: the model's longest stack has {deepest} layers")


def _named(words: str, found: Sequence[Stack]) -> Iterator[tuple[Stack, int]]:
    """The layers that `encoder.0-2` stands for. Raises ModelError if one of them is not there."""
    where, _, numbers = words.rpartition(".")
    start, _, end = numbers.partition("-")
    first, last = int(start), int(end or start)
    near = [stack for stack in found if where in ("", stack.side, stack.path)]
    hits = [(stack, layer) for stack in near for layer in range(first, min(last + 1, stack.layers))]
    if not hits or last >= max(stack.layers for stack in near):  # a part that is not there is a mistake too
        there = ", ".join(f"{stack.path}.0-{stack.layers - 1} ({stack.side})" for stack in found)
        raise ModelError(f"--strategy.layers {words} matches no layer; there are: {there}")
    yield from hits
