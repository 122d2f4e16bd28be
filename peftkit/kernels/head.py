"""The output layer at the positions whose logits are read, and no other; with the cross-entropy in it, where that holds.

Most of a step's positions are prompt, padding or unmasked words: their logits, (positions x vocabulary), are never read. What
is read says the task (`tasks.positions`).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from peftkit.config.speed import Way
from peftkit.errors import ConfigError
from peftkit.kernels import linear
from peftkit.kernels.cross_entropy import After, Layer, token_losses, token_scores
from peftkit.kernels.logits import UnclearError, after_head
from peftkit.kernels.patch import patch
from peftkit.models.inspect import inner
from peftkit.tasks import Task
from peftkit.tasks.positions import Asked, asked_now


def hang_head(model: nn.Module, task: Task, way: Way) -> tuple[list[Any], list[str]]:
    """Let the model's output layer compute what is read alone; handles, and words for the header.

    Raises ConfigError if it is `on` and does not hold. Nothing to say, and nothing done, for tasks that read all logits.
    """
    if way == "off" or type(task).wanted is Task.wanted:
        return [], []
    plain: Any = inner(model)[1]
    try:
        head = output_layer(plain)
        after, passes = after_head(plain, head)
    except UnclearError as problem:
        if way == "on":
            raise ConfigError(f"--speed.head on: not with a {type(plain).__name__}: {problem}") from problem
        return [], [f"all logits are computed ({problem})"]
    holder = holder_of(plain, head)
    # An adapter on the layer, or 4-bit weights: what it computes for a position is still the same without the others.
    simple = type(head).forward is nn.Linear.forward and head.weight.is_floating_point()
    fused = after if after is not None and simple and (passes or holder is head) else None
    words = "logits of targets alone" + (", a block at a time" if fused else "")
    hooks = [] if holder is head else [patch(holder, _selecting)]
    hooks += [] if fused is None or passes else [head.register_forward_hook(_carried)]
    return [*hooks, patch(head, partial(_reduced, fused))], [words]


def output_layer(plain: Any) -> Any:
    """The matrix from hidden states to the vocabulary; UnclearError if the model has none."""
    try:
        found = plain.get_output_embeddings()
    except (AttributeError, NotImplementedError):
        found = None
    if found is None or not any(found is module for module in plain.modules()):
        raise UnclearError("it has no output layer")
    return found


def holder_of(model: nn.Module, head: nn.Module) -> nn.Module:
    """The outermost part that is called with hidden states and has the output layer in it: itself, or what transforms for it.

    A decoder that is a model of its own is called with other things.
    """
    from transformers import PreTrainedModel

    part = next(child for child in model.children() if any(head is module for module in child.modules()))
    return holder_of(part, head) if isinstance(part, PreTrainedModel) else part


def _selecting(module: nn.Module, hidden: Tensor, *rest: Any, **words: Any) -> Any:
    """The forward of what holds the output layer (a masked language model's transform), for the positions that are read."""
    asked = asked_now()
    chosen = hidden if asked is None else asked.select(hidden)[None]
    return type(module).forward(module, chosen, *rest, **words)


def _reduced(after: After | None, head: nn.Module, hidden: Tensor) -> Tensor:
    """The forward of the output layer: (targets,) losses, or the (1, targets, vocabulary) logits."""
    asked = asked_now()
    if asked is None:
        return _all(head, hidden)
    chosen = asked.select(hidden)
    if after is not None and not asked.wanted.logits:
        return _losses(head, chosen, asked, after)
    asked.answered = "logits"
    return _all(head, chosen[None])


def _all(head: Any, hidden: Tensor) -> Tensor:
    """The logits of all of these positions."""
    found: Tensor = linear.forward(head, hidden) if type(head) is nn.Linear else type(head).forward(head, hidden)
    return found


def _losses(head: Any, chosen: Tensor, asked: Asked, after: After) -> Tensor:
    asked.answered = "losses"
    _last(head)
    if torch.is_grad_enabled() and (chosen.requires_grad or head.weight.requires_grad):
        return token_losses(chosen, head.weight, head.bias, asked.labels, after, asked.wanted.alike)
    losses, asked.correct = token_scores(Layer(head.weight, head.bias, after), chosen, asked.labels)
    return losses


def _carried(head: nn.Module, inputs: Any, output: Tensor) -> Tensor | None:
    """Take the losses out of the way of a model that does something to its logits; as they are behind all other hooks.

    ZeRO-3's makes the layer's weight come back before the losses' backward pass.
    """
    asked = asked_now()
    if asked is None or asked.answered != "losses":
        return None
    asked.losses = output
    return output.new_zeros(1, 1, 1)


def _last(head: nn.Module) -> None:
    """Put `_carried`, if it is there, behind the hooks that have come since."""
    for number, hook in list(head._forward_hooks.items()):
        if hook is _carried:
            head._forward_hooks[number] = head._forward_hooks.pop(number)
