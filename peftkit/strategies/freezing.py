"""What the strategies that only freeze have in common: they name what trains, and merging leaves the model as it is."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, cast

from peftkit.errors import ModelError
from peftkit.models.inspect import Side, head_paths, inner, places, stacks
from peftkit.strategies.base import Strategy

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


class Freezing(Strategy):
    """A strategy that trains some of the model's own weights and freezes the others."""

    def names(self, model: nn.Module) -> set[str]:
        """Names of the parameters to train, besides the fresh ones."""
        raise NotImplementedError

    def adapt(self, model: PreTrainedModel, fresh: Sequence[str] = ()) -> nn.Module:
        train_only(model, self.names(model) | set(fresh), asked_by=f"--strategy {self.name}")
        return cast("nn.Module", model)

    def merge(self, model: nn.Module) -> PreTrainedModel:
        return cast("PreTrainedModel", model)


def train_only(model: nn.Module, names: Collection[str], asked_by: str) -> None:
    """Let exactly `names` train; a tied weight trains if any of its names is among them.

    Weights that the architecture itself holds fixed (sinusoidal positions) stay so.
    """
    named = list(model.named_parameters(remove_duplicate=False))
    wanted = {id(parameter) for name, parameter in named if name in names}
    fixed = fixed_by_design(model)
    for name, parameter in named:
        if id(parameter) in wanted and not (parameter.is_floating_point() or parameter.is_complex()):
            raise ModelError(
                f"{asked_by} trains {name}, which is quantised ({parameter.dtype}) and has no gradient;"
                " only adapters train on such a base: --strategy lora or qlora"
            )
        if name not in fixed:
            parameter.requires_grad_(id(parameter) in wanted)
    if not any(parameter.requires_grad for _, parameter in named):
        raise ModelError(f"{asked_by} would train nothing in {type(model).__name__}; it has {contents(model)}")


def fixed_by_design(model: nn.Module) -> frozenset[str]:
    """Parameters that did not train before any strategy touched the model; remembered on it, for later stages."""
    plain: Any = inner(model)[1]
    if not hasattr(plain, "_fixed_by_design"):
        named = model.named_parameters(remove_duplicate=False)
        plain._fixed_by_design = frozenset(name for name, parameter in named if not parameter.requires_grad)
    fixed: frozenset[str] = plain._fixed_by_design
    return fixed


def on_side(model: nn.Module, side: Side, asked_by: Strategy) -> set[str]:
    """What only the encoder (or the decoder) uses: its layers, norms and embeddings; not the head, not what both share."""
    if not any(stack.side == side for stack in stacks(model)):
        raise ModelError(
            f"--strategy {asked_by.name}: {type(model).__name__} has no {side}; it has {contents(model)}."
            f" Strategies that fit it: {', '.join(fitting(model))}"
        )
    return {name for name, place in places(model).items() if place.sides == {side}}


def fitting(model: nn.Module) -> list[str]:
    """The strategies, as they are without settings, that find something to train in this model."""
    return [name for name in Strategy.registry if _fits(Strategy.registry[name], model)]


def _fits(strategy: type[Strategy], model: nn.Module) -> bool:
    if not issubclass(strategy, Freezing):
        return True
    if strategy.name in ("encoder_only", "decoder_only"):  # asked by these, so do not ask them in turn
        return any(strategy.name.startswith(stack.side) for stack in stacks(model))
    try:
        return bool(strategy().names(model))
    except ModelError:
        return False


def contents(model: nn.Module) -> str:
    """The model's stacks and head in words: `model.layers (decoder, layers 0-29), the head lm_head`."""
    said = [f"{stack.path} ({stack.side}, layers 0-{stack.layers - 1})" for stack in stacks(model)]
    alone = sorted({name.rpartition(".")[0] or name for name, place in places(model).items() if place.part == "head"})
    tied = sorted(name for name, place in places(model).items() if place.is_head_too)
    if alone:
        said.append(f"the head {', '.join(alone)}")
    elif tied:
        said.append(f"the head {', '.join(head_paths(model))}, tied to {', '.join(tied)}")
    else:
        said.append("no head")
    return ", ".join(said)
