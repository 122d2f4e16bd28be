"""What a model does to its logits behind the output layer (soft caps, scales, biases), found out without computing any.

The model's own forward runs around stand-ins: its body returns anything, its output layer made-up logits, all else its input.
So no weight is read (ZeRO-3 may have it elsewhere, and 4-bit ones are packed), and it takes a millisecond.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from peftkit.kernels.cross_entropy import After

POSITIONS = 5
SOME = [3, 1]
HUGE, SMALL = 2.0**100, 1e-3


class UnclearError(Exception):
    """Why nothing can be said of a model."""


@torch.no_grad()
def after_head(plain: Any, head: nn.Module) -> tuple[After | None, bool]:
    """What turns the output layer's result into the model's logits; None if each position's can be had, but not by `After`.

    And whether the logits are the very tensor that the layer returned, whatever its shape.
    Raises UnclearError if the logits of a few positions alone might not be those that they have among all.
    """
    from transformers import PreTrainedModel

    size = getattr(head, "out_features", None) or plain.config.get_text_config().vocab_size
    device = next((one.device for one in plain.buffers(recurse=False)), torch.device("cpu"))
    made = 10 * torch.randn(1, POSITIONS, size, generator=torch.Generator().manual_seed(0)).to(device)
    ids = torch.ones(1, POSITIONS, dtype=torch.long, device=device)
    words = {plain.main_input_name: ids} | ({"decoder_input_ids": ids} if plain.config.is_encoder_decoder else {})

    def run(logits: Tensor) -> Tensor:
        with ExitStack() as stack:
            for module in beside(plain, head):
                whole = isinstance(module, PreTrainedModel)
                stack.enter_context(stand_in(module, _body if whole else _itself))
            stack.enter_context(stand_in(head, lambda *_, **__: logits))
            found: Tensor = plain.forward(**words).logits
        return found

    try:
        whole, few = run(made.clone()), run(made[:, SOME])
        ends = [run(torch.full_like(made[:, :1], value))[0, 0] for value in (0, SMALL, HUGE)]
    except Exception as problem:  # of any kind: it is another library's code around things that are not what it expects
        raise UnclearError(f"its forward could not be followed ({type(problem).__name__}: {problem})") from problem
    if whole.shape[:2] != made.shape[:2] or not torch.equal(few, whole[:, SOME]):
        raise UnclearError("it mixes the logits of several positions")
    return _explained(plain, made, whole, *ends), _passes(run)


def _passes(run: Callable[[Tensor], Tensor]) -> bool:
    """Whether a tensor of another shape comes back as it is."""
    other = torch.zeros(POSITIONS)
    try:
        return run(other) is other
    except Exception:  # it was not meant to hold
        return False


def beside(module: nn.Module, head: nn.Module) -> Iterator[nn.Module]:
    """The largest parts of the model that do not hold the output layer."""
    for child in module.children():
        if child is not head:
            holds = any(head is inside for inside in child.modules())
            yield from beside(child, head) if holds else (child,)


@contextmanager
def stand_in(module: nn.Module, function: Callable[..., Any]) -> Iterator[None]:
    """Let `function` be the module's forward meanwhile, whatever it is now."""
    before = module.__dict__.get("forward")
    module.__dict__["forward"] = function
    try:
        yield
    finally:
        del module.__dict__["forward"]
        if before is not None:
            module.__dict__["forward"] = before


class _Said(tuple[Any, ...]):
    """A body's outputs: the hidden states in front, and nothing under any other name."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self[0] if name == "last_hidden_state" else None


def _body(*_: Any, **__: Any) -> _Said:
    return _Said([torch.zeros(1, POSITIONS, 8)])


def _itself(first: Any = None, *_: Any, **words: Any) -> Any:
    return first if first is not None else next(iter(words.values()))


def _explained(
    plain: nn.Module, made: Tensor, whole: Tensor, nothing: Tensor, small: Tensor, huge: Tensor
) -> After | None:
    """The transformation that these answers are those of; None if it is another one, or the logits were cut."""
    shift = None
    if nothing.any():
        like = [one for one in plain.buffers(recurse=False) if one.numel() == nothing.numel()]
        shift = next((one.flatten() for one in like if torch.equal(one.flatten().float(), nothing.float())), None)
    end = float((huge - nothing).float()[0])
    capped = abs(end) < HUGE / 1e6
    scale = float((small - nothing).float()[0]) / SMALL if capped else end / HUGE
    after = After(1.0 if abs(scale - 1) < 1e-6 else scale, end if capped else None, shift)
    if whole.shape != made.shape:
        return None
    return after if torch.allclose(after.of(made.clone()), whole.float(), rtol=1e-5, atol=1e-6) else None
