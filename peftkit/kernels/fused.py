"""Norms and gated layers as one kernel each: Liger's on a GPU (https://arxiv.org/abs/2410.10989), or what torch.compile makes.

A norm written out in torch is half a dozen operations, each of which reads and writes all states.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from shutil import which
from typing import Any

import torch
from torch import nn

from peftkit.config.speed import Way
from peftkit.errors import ConfigError
from peftkit.kernels.patch import Patch, patch
from peftkit.models.inspect import inner

OTHERS = {"rope": False, "cross_entropy": False, "fused_linear_cross_entropy": False}
"""What else Liger puts in the place of transformers' own: functions of all models at once, and the loss, which is ours."""


def hang_liger(model: nn.Module, way: Way) -> tuple[list[Any], list[str]]:
    """Let norms and gated layers be Liger's kernels, where there is a GPU and Liger knows the model: handles, and words on it.

    Raises ConfigError if it is `on` and there is no GPU, no Liger, or none for the model.
    """
    if way == "off":
        return [], []
    plain: Any = inner(model)[1]
    why, found = _no_liger(plain), []
    try:
        found = [] if why else list(_liger(plain))
    except ImportError as problem:  # too old, or without Triton
        why = f"it cannot be imported ({problem})"
        if way == "auto":
            return [], [f"norms without Liger's kernels: {why}"]
    if not found and way == "on":
        raise ConfigError(
            f"--speed.liger on: {why or f'Liger has nothing for {plain.config.model_type}'}; leave it at auto"
        )
    return list(found), [f"Liger's kernels in {len(found)} norms and gated layers"] if found else []


def _no_liger(plain: Any) -> str:
    """Why there can be none of its kernels; empty if there can."""
    if not torch.cuda.is_available():
        return "its kernels are a GPU's, and there is none"
    if find_spec("liger_kernel") is None:
        return "it is not installed (pip install liger-kernel)"
    return "" if getattr(plain, "config", None) is not None else "this is no transformers model"


def _liger(plain: Any) -> Iterator[Bound]:
    """Each module that Liger has bound its own methods to."""
    from transformers.integrations.liger import apply_liger_kernel

    before = {module: dict(vars(module)) for module in plain.modules()}
    with _classes_kept(plain):
        apply_liger_kernel(plain, OTHERS)
    for module, had in before.items():
        if vars(module).get("forward") is not had.get("forward"):
            yield Bound(module, had)


@dataclass(frozen=True)
class Bound:
    """A module with another's methods and what these need; `remove` leaves it as it was."""

    module: nn.Module
    before: dict[str, Any]

    def remove(self) -> None:
        for name in vars(self.module).keys() - self.before.keys():
            del self.module.__dict__[name]
        for name in ("forward", "extra_repr", "_get_name"):
            if name in self.before:
                self.module.__dict__[name] = self.before[name]


@contextmanager
def _classes_kept(plain: Any) -> Iterator[None]:
    """Liger puts its classes into transformers' module, for all models to come: these stay as they were."""
    place = vars(sys.modules[type(plain).__module__])
    before = dict(place)
    try:
        yield
    finally:
        place.update(before)


def hang_compiled(model: nn.Module, asked: bool) -> tuple[list[Patch], list[str]]:
    """Let torch.compile make one kernel of each norm that is written out in torch; handles, and words on it.

    Raises ConfigError if there is no C++ compiler, without which it makes none.
    """
    if not asked:
        return [], []
    if not any(which(name) for name in (os.environ.get("CXX", "g++"), "clang++")):
        raise ConfigError(
            "--speed.compile: torch.compile needs a C++ compiler (g++), and there is none; install one, or leave it out"
        )
    norms = [module for module in model.modules() if _is_written_out(module)]
    if not norms:
        return [], ["nothing to compile: no norm is written out in torch"]
    kinds: set[Any] = {type(norm) for norm in norms}
    made: dict[Any, Callable[..., Any]] = {kind: torch.compile(kind.forward, dynamic=True) for kind in kinds}
    return [patch(norm, made[type(norm)]) for norm in norms], [f"{len(norms)} norms compiled in the first steps"]


def _is_written_out(module: nn.Module) -> bool:
    """Whether it is a norm of another library's, with nothing in it but a vector: torch's own have kernels already."""
    kind = type(module)
    return (
        kind.__name__.endswith("Norm")
        and not kind.__module__.startswith("torch.")
        and "forward" not in vars(module)
        and not list(module.children())
        and all(weight.ndim == 1 for weight in module.parameters())
    )
