"""PEFT, without what it imports for layers that a model may not have."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from peftkit.lazy import deferred, uncollected

if TYPE_CHECKING:
    from torch import nn


def peft() -> Any:
    """The library. What it holds of bitsandbytes (a second of imports, and 90 MB) is imported when that is first used."""
    with deferred("bitsandbytes"), uncollected():
        import peft as library
    return library


ASKED = {
    "bitsandbytes": ("model", ("is_bnb_available", "is_bnb_4bit_available")),
    "torchao": ("torchao", ("is_torchao_available",)),
}
"""Library -> the file of PEFT's LoRA that asks for it, by which functions."""


@contextmanager
def asking_no_other(model: nn.Module) -> Iterator[None]:
    """Meanwhile PEFT, which asks these libraries of every layer whether it is one of their own, takes the answer no.

    Only where that is the answer: no layer of `model` is, and nobody has imported the library.
    """
    lora = peft().tuners.lora
    quiet = [asked for library, asked in ASKED.items() if library not in sys.modules and not _uses(model, library)]
    places = [(vars(getattr(lora, file)), name) for file, names in quiet for name in names]
    before = [(place, name, place[name]) for place, name in places if name in place]
    for place, name, _ in before:
        place[name] = _no
    try:
        yield
    finally:
        for place, name, function in before:
            place[name] = function


def _no() -> bool:
    return False


def _uses(model: nn.Module, library: str) -> bool:
    """Whether a layer or a weight of the model is of a class of that library."""
    parts = [*model.modules(), *model.parameters()]
    kinds = {type(part) for part in parts}
    return any(kind.__module__.partition(".")[0] == library for own in kinds for kind in own.__mro__)
