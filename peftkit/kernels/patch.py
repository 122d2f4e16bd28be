"""What is put in the place of a module's own method, and taken off again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import MethodType
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Patch:
    """One module's method that stands for its class's; `remove` takes it off, as a handle of torch's hooks does."""

    module: nn.Module
    name: str

    def remove(self) -> None:
        self.module.__dict__.pop(self.name, None)


def patch(module: nn.Module, function: Callable[..., Any], name: str = "forward") -> Patch:
    """Let `function(module, ...)` be this module's method `name`: no other module, type or state dict is touched.

    Hooks (ZeRO-3's, which gather the weights) run around it as before. A patch of a patch has to come off first.
    """
    module.__dict__[name] = MethodType(function, module)
    return Patch(module, name)
