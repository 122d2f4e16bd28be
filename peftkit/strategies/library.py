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


@contextmanager
def asking_no_other(model: nn.Module) -> Iterator[None]:
    """Meanwhile PEFT, which asks bitsandbytes of every layer whether it is one of its own, takes the answer no.

    Only where that is the answer: no layer of `model` is.
    """
    if "bitsandbytes" in sys.modules or any(_is_quantised(module) for module in model.modules()):
        yield
        return
    lora = peft().tuners.lora.model
    asked = {name: vars(lora)[name] for name in ("is_bnb_available", "is_bnb_4bit_available") if name in vars(lora)}
    vars(lora).update(dict.fromkeys(asked, lambda: False))
    try:
        yield
    finally:
        vars(lora).update(asked)


def _is_quantised(module: nn.Module) -> bool:
    return any(kind.__module__.partition(".")[0] == "bitsandbytes" for kind in type(module).__mro__)
