"""The machine's own limits: matrix products in each format and shape by each way that the CPU has, and copying.

OMP_NUM_THREADS=1 python tests/bench/limits.py          GFLOP for each CPU second, and GB/s; as JSON with --json
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from statistics import median

import torch
import torch.nn.functional as F

SHAPES = {
    "2048 x 2048 x 2048": (2048, 2048, 2048),
    "W1 MLP: 1024 x 512 x 1408": (1024, 512, 1408),
    "W1 attention: 1024 x 512 x 512": (1024, 512, 512),
    "W1 head: 1024 x 512 x 32000": (1024, 512, 32000),
    "W1v head: 512 x 256 x 128256": (512, 256, 128256),
    "W2 MLP: 2048 x 384 x 1536": (2048, 384, 1536),
    "LoRA A: 1024 x 512 x 16": (1024, 512, 16),
    "LoRA B: 1024 x 16 x 512": (1024, 16, 512),
}
"""Rows, inputs and outputs of a linear layer."""
FORMATS = {"fp32": torch.float32, "bf16": torch.bfloat16}
ENOUGH = 0.25
"""CPU seconds of each measurement, at least."""


def limits() -> dict[str, dict[str, dict[str, float]]]:
    """Format -> shape -> way -> GFLOP a CPU second."""
    return {
        name: {shape: {way: gflops(*sizes, dtype, make) for way, make in WAYS.items()} for shape, sizes in SHAPES.items()}
        for name, dtype in FORMATS.items()
    }  # fmt: skip


def default(x: torch.Tensor, weight: torch.Tensor) -> Callable[[], torch.Tensor]:
    return lambda: F.linear(x, weight)


def onednn(x: torch.Tensor, weight: torch.Tensor) -> Callable[[], torch.Tensor]:
    """oneDNN's, whatever torch would choose; its result is fp32 where its inputs are."""
    return lambda: torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")


WAYS = {"F.linear": default, "oneDNN": onednn}


def gflops(
    rows: int, inputs: int, outputs: int, dtype: torch.dtype, make: Callable[..., Callable[[], object]]
) -> float:
    product = make(torch.randn(rows, inputs, dtype=dtype), torch.randn(outputs, inputs, dtype=dtype))
    return 2e-9 * rows * inputs * outputs / seconds(product)


def seconds(work: Callable[[], object]) -> float:
    """Median CPU seconds of a call."""
    work()
    taken: list[float] = []
    while sum(taken) < ENOUGH or len(taken) < 5:
        start = time.process_time()
        work()
        taken.append(max(1e-9, time.process_time() - start))
    return median(taken)


def bandwidth() -> float:
    """GB/s of a copy that no cache holds, read and written bytes both counted."""
    source = torch.ones(2**26)
    target = torch.empty_like(source)
    return 2 * source.numel() * 4 / 1e9 / seconds(lambda: target.copy_(source))


def text(found: dict[str, dict[str, dict[str, float]]], copied: float) -> str:
    lines = [f"{'GFLOP a CPU second':34}" + "".join(f"{f'{name} {way}':>16}" for name in found for way in WAYS)]
    for shape in SHAPES:
        cells = [found[name][shape][way] for name in found for way in WAYS]
        lines.append(f"{shape:34}" + "".join(f"{cell:16.0f}" for cell in cells))
    return "\n".join([*lines, f"copying: {copied:.1f} GB/s"])


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    found, copied = limits(), bandwidth()
    print(json.dumps({"products": found, "copy": copied}) if "--json" in sys.argv else text(found, copied))
