"""The trunk: what lies below the lowest layer that trains. Nothing of it needs a gradient, and its outputs never change.

trunk = find_trunk(model)
trunk.layers, trunk.embeddings, trunk.whole
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from peftkit.errors import ModelError
from peftkit.models.inspect import Place, Stack, inner, places, stacks

ASKING = "make_inputs_require_grad"
"""Begin of the names of PEFT's and transformers' hooks on embeddings."""


@dataclass(frozen=True)
class Trunk:
    """The frozen layers from the inputs up to the first one that trains."""

    path: str
    """Name of the stack that it is the lower part of."""
    layers: tuple[nn.Module, ...]
    above: tuple[nn.Module, ...]
    """The stack's other layers; none if the whole stack is frozen."""
    embeddings: tuple[nn.Module, ...]
    """The outermost modules that hold nothing but embeddings, and that nothing else than this stack uses."""
    reader: nn.Module
    """What is called with the inputs in order to run it: the base model, or its encoder."""
    whole: bool
    """Whether the reader is an encoder whose output a decoder takes, frozen from end to end: it is left out as a whole."""

    @property
    def words(self) -> str:
        """`embeddings and layers 0-3 of bert.encoder.layer`."""
        return f"embeddings and layers 0-{len(self.layers) - 1} of {self.path}"


def find_trunk(model: nn.Module) -> Trunk:
    """The trunk of a model whose trainable weights are marked.

    Raises ModelError, a sentence that goes on from a colon, where there is none, or none that could be told apart.
    """
    plain: Any = inner(model)[1]
    found, where = stacks(model), places(model)
    sides = [stack.side for stack in found]
    two = sides == ["encoder", "decoder"] and bool(getattr(plain.config, "is_encoder_decoder", False))
    if len(found) != 1 and not two:
        raise ModelError(f"{type(plain).__name__} is not one stack of layers, nor an encoder and a decoder")
    stack = found[0]
    listed = tuple(model.get_submodule(stack.path).children())
    reader = plain.get_encoder() if two else plain.base_model
    if getattr(reader.config, "num_hidden_layers", len(listed)) != len(listed):
        raise ModelError(f"{type(plain).__name__} runs its layers several times")
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    frozen = _frozen(stack, where, trained)
    if not frozen:
        raise ModelError(f"a weight of the embeddings or of the lowest layer of {stack.path} trains")
    below = {name for name, place in where.items() if place.part == "embeddings" and place.sides <= {stack.side}}
    embeddings = _holders(model, reader, below)
    whole = two and not any(weight.requires_grad for weight in reader.parameters())
    return Trunk(stack.path, listed[:frozen], listed[frozen:], embeddings, reader, whole)


@dataclass(frozen=True)
class Freed:
    """Frozen layers that keep nothing for a backward pass; `remove` lets them be checkpointed again."""

    modules: tuple[nn.Module, ...]

    def remove(self) -> None:
        for module in self.modules:
            module.gradient_checkpointing = True  # type: ignore[assignment]


def free_trunk(model: nn.Module) -> Freed:
    """See to it that no backward pass has anything to do below the lowest layer that trains.

    PEFT and transformers let the embeddings' outputs require a gradient where activations are checkpointed: reentrant
    checkpoints need that, which peftkit does not use, and every backward pass would go down to the embeddings. And a
    checkpoint keeps its inputs for as long as its layer runs, also where nothing will ever be computed again.
    """
    for module in model.modules():
        # By their names: PEFT hangs them on a second time, and transformers then knows of the second ones alone.
        asking = [number for number, hook in module._forward_hooks.items() if _name(hook).startswith(ASKING)]
        for number in asking:
            del module._forward_hooks[number]
    frozen = [module for layer in _resting(model) for module in layer.modules()]
    freed = Freed(tuple(module for module in frozen if getattr(module, "gradient_checkpointing", False)))
    for module in freed.modules:
        module.gradient_checkpointing = False  # type: ignore[assignment]
    return freed


def _name(hook: Any) -> str:
    return getattr(hook, "__name__", "")


def _resting(model: nn.Module) -> list[nn.Module]:
    """The layers through which no gradient goes."""
    where, layers = places(model), []
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    for stack in stacks(model):
        frozen = _frozen(stack, where, trained)
        layers += list(model.get_submodule(stack.path).children())[:frozen]
        if any(place.stack == stack for name, place in where.items() if name in trained):
            break  # a decoder that looks at an encoder that trains hands it its gradient
    return layers


def _frozen(stack: Stack, where: dict[str, Place], trained: set[str]) -> int:
    """How many of the stack's layers are frozen from the bottom up, with all that feeds them."""
    own = [place for name, place in where.items() if name in trained]
    if any(place.part == "embeddings" and (not place.sides or stack.side in place.sides) for place in own):
        return 0
    return min((place.layer for place in own if place.stack == stack and place.layer is not None), default=stack.layers)


def _holders(model: nn.Module, reader: nn.Module, names: set[str]) -> tuple[nn.Module, ...]:
    """The outermost modules in `reader` all of whose parameters are named."""
    ids = {id(weight) for name, weight in model.named_parameters() if name in names}
    chosen: list[nn.Module] = []
    inside: set[nn.Module] = set()
    for module in reader.modules():
        weights = list(module.parameters())
        if module not in inside and weights and all(id(weight) in ids for weight in weights):
            chosen.append(module)
            inside.update(module.modules())
    return tuple(chosen)
