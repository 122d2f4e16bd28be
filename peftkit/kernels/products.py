"""Matrix products, each by the kernel that this processor computes its shape fastest with.

torch gives fp32 products to MKL, which reaches half of what oneDNN does on some processors (AMD's that have the full width of
AVX-512), and in some shapes more. Both compute in fp32: `_linear_pointwise` takes bf16 inside only where the user has asked
torch for it. So each shape is timed once, for some milliseconds, and the answer is kept with what peftkit keeps between runs.
16-bit products torch gives to oneDNN by itself, and off the CPU there is nothing to choose.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from peftkit.cache import cache_root

FEW = 64
"""A product of fewer rows (tokens) is torch's without a question, as when a text is generated."""
FEWEST = 1e7
"""A product with fewer operations is torch's without a question."""
TOKENS = 512
"""Rows that a shape is timed with, or as many as make WORK: more rows do not change which kernel is faster."""
WORK = 1e9
"""Operations (2 x the three extents) of a timed product at most: about ten milliseconds on a core."""
WIDE = 4096
"""A wider weight is timed, and known, as this wide."""
MARGIN = 0.97
"""oneDNN is taken where it needs less than this of torch's time."""
CLEAR = 0.75
"""Where one needs less than this of the other's time, once is enough."""


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x @ weight.T + bias` for x (..., K), weight (N, K), bias (N): (..., N)."""
    if _takes_onednn("forward", x, weight, weight.shape):
        return _onednn(x, weight, bias)
    return functional.linear(x, weight, bias)


def product_back(gradient: Tensor, weight: Tensor) -> Tensor:
    """`gradient @ weight` for gradient (..., N), weight (N, K): the gradient of a product's x, (..., K)."""
    if _takes_onednn("back", gradient, weight, weight.shape):
        return _onednn(gradient, weight.t())
    return torch.matmul(gradient, weight)


def product_outer(gradient: Tensor, x: Tensor) -> Tensor:
    """`gradient.T @ x` for gradient (..., N), x (..., K): the gradient of a product's weight, (N, K).

    The narrower of the two gives the rows, whichever it is: kernels are made for few rows rather than few columns.
    """
    gradient, x = gradient.reshape(-1, gradient.shape[-1]), x.reshape(-1, x.shape[-1])
    if gradient.shape[1] > x.shape[1]:
        return product_outer(x, gradient).t().contiguous()
    if _takes_onednn("outer", gradient, x, (gradient.shape[1], x.shape[1])):
        return _onednn(gradient.t(), x.t())
    return torch.mm(gradient.t(), x)


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    found: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return found


def _takes_onednn(kind: Kind, one: Tensor, other: Tensor, extents: tuple[int, ...]) -> bool:
    if (
        _table is None
        or one.dtype is not torch.float32
        or other.dtype is not torch.float32
        or one.device.type != "cpu"
        or not one.is_contiguous()
        or not other.is_contiguous()
        or (torch.is_grad_enabled() and (one.requires_grad or other.requires_grad))  # the op has no gradient
        or torch.is_autocast_enabled("cpu")
    ):
        return False
    outputs, inputs = extents
    rows = one.numel() // max(1, one.shape[-1])
    if rows < FEW or 2.0 * rows * outputs * inputs < FEWEST:
        return False
    return _table.takes_onednn(Shape(kind, min(outputs, WIDE), min(inputs, WIDE)))


Kind = Literal["forward", "back", "outer"]


@dataclass(frozen=True)
class Shape:
    """A product with, or for, a weight of (outputs, inputs)."""

    kind: Kind
    outputs: int
    inputs: int

    @property
    def name(self) -> str:
        return f"{self.kind} {self.outputs}x{self.inputs} threads {torch.get_num_threads()}"

    def ways(self) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
        """torch's and oneDNN's computation of it, on numbers that mean nothing."""
        tokens = max(FEW, min(TOKENS, int(WORK / (2.0 * self.outputs * self.inputs))))
        x, weight = torch.ones(tokens, self.inputs), torch.ones(self.outputs, self.inputs)
        gradient = torch.ones(tokens, self.outputs)
        if self.kind == "forward":
            return partial(functional.linear, x, weight), partial(_onednn, x, weight)
        if self.kind == "back":
            return partial(torch.mm, gradient, weight), partial(_onednn, gradient, weight.t())
        return partial(torch.mm, gradient.t(), x), partial(_onednn, gradient.t(), x.t())


@dataclass
class Table:
    """Which shapes oneDNN computes faster, by this process's measuring or an earlier one's."""

    file: Path
    known: dict[str, bool] = field(default_factory=dict)
    asked: dict[tuple[Shape, int], bool] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.known = self._read()

    def takes_onednn(self, shape: Shape) -> bool:
        """Whether the shape is oneDNN's; one that nobody has asked for yet is timed."""
        key = shape, torch.get_num_threads()
        if key not in self.asked:
            if shape.name not in self.known:
                self.known |= self._read()  # another process of the run may have timed it by now
            if shape.name not in self.known:
                self.known[shape.name] = is_faster(*shape.ways())
                self._write()
            self.asked[key] = self.known[shape.name]
        return self.asked[key]

    def _read(self) -> dict[str, bool]:
        with suppress(OSError, ValueError):
            found = json.loads(self.file.read_text(encoding="utf-8"))
            if isinstance(found, dict):
                return {name: value for name, value in found.items() if isinstance(value, bool)}
        return {}

    def _write(self) -> None:
        with suppress(OSError):  # then the next process measures it again
            self.file.parent.mkdir(parents=True, exist_ok=True)
            beside = self.file.with_name(f"{self.file.name}.{os.getpid()}")
            beside.write_text(json.dumps(self._read() | self.known, indent=0, sort_keys=True), encoding="utf-8")
            beside.replace(self.file)


@torch.no_grad()
def is_faster(usual: Callable[[], Tensor], other: Callable[[], Tensor]) -> bool:
    """Whether `other` clearly is: the best of up to three each, in turns, so that a neighbour's work meets both."""
    best = [float("inf"), float("inf")]
    for turn in range(4):
        for at, way in enumerate((usual, other)):
            before = time.perf_counter()
            way()
            if turn:  # the first makes the kernel
                best[at] = min(best[at], time.perf_counter() - before)
        if turn and min(best) < CLEAR * max(best):
            break
    return best[1] < MARGIN * best[0]


_table: Table | None = None


@dataclass(frozen=True)
class Chosen:
    """Products are chosen until `remove` is called."""

    table: Table | None
    before: Table | None

    def remove(self) -> None:
        global _table
        if _table is self.table:
            _table = self.before


def choose(file: Path | None = None) -> Chosen:
    """From now on products are computed by the faster kernel; until then, and without oneDNN, by torch's own way."""
    global _table
    if not has_onednn():
        return Chosen(_table, _table)
    chosen = Chosen(Table(file or kept()), _table)
    _table = chosen.table
    return chosen


def has_onednn() -> bool:
    """Whether this torch was built with it."""
    return bool(torch._C._has_mkldnn)


def kept() -> Path:
    """Where this processor's answers lie: another processor, or another torch, has its own."""
    return cache_root(None) / "products" / f"{processor()}.json"


@cache
def processor() -> str:
    """A word for the processor and the torch that it runs: its name alone may leave open what it can do."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n", 1)[0].splitlines()
        told = [
            line for line in lines if line.split("\t")[0] in ("vendor_id", "cpu family", "model", "model name", "flags")
        ]
    except OSError:
        told = [platform.processor(), platform.machine()]
    return hashlib.sha256("\n".join([*sorted(told), torch.__version__]).encode()).hexdigest()[:16]
