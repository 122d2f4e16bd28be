"""A tiny model with odd sizes (one parameter smaller than the number of processes), under DeepSpeed and under plain torch.

Each step's rows are drawn from its number; on several processes each takes its share, so the gradient is that of all rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from peftkit.engine.ds_config import Plan, fill, read_config
from peftkit.engine.open import DTYPES, Engine, open_engine
from peftkit.engine.optim import Optimizer, parameter_groups
from peftkit.engine.world import World

ROWS, WIDE = 12, 128
GROUPS = {"weight_decay": 0.1, "lr_by_name": {"last": 3e-3}, "clip": 0.5}
"""Settings that make several groups, and clipping that matters."""


class Odd(nn.Module):
    """`wide` gives it a matrix that 8-bit optimizers do keep in 8 bits."""

    def __init__(self, wide: bool = False, seed: int = 0) -> None:
        super().__init__()
        inner = WIDE if wide else 7
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.first = nn.Linear(5, inner)
            self.norm = nn.LayerNorm(inner)
            self.middle = nn.Linear(inner, inner, bias=False)
            self.last = nn.Linear(inner, 3)
            self.scale = nn.Parameter(torch.ones(1))

    def forward(self, rows: Tensor) -> Tensor:
        inner = self.norm(self.first(rows))
        found: Tensor = self.last(torch.nn.functional.gelu(self.middle(inner))) * self.scale
        return found


def optimizer(name: str, **settings: Any) -> Optimizer:
    made: Optimizer = Optimizer.model_validate({"name": name, "lr": 1e-2, **GROUPS, **settings})
    return made


def opened(
    model: nn.Module,
    zero: str,
    world: World,
    optim: Optimizer | None = None,
    precision: str = "fp32",
    born: dict[str, int] | None = None,
    **more: Any,
) -> Engine:
    """An engine on one of ds_configs/; `more` is put into the filled configuration."""
    optim = optim or optimizer("adamw")
    plan = Plan(ROWS, ROWS // world.processes, world.processes, precision, optim, Path("/nowhere"))
    return open_engine(model.to(DTYPES[precision]), optim, {**fill(read_config(zero), plan), **more}, {}, born or {})


def rows_of(step: int) -> tuple[Tensor, Tensor]:
    numbers = torch.Generator().manual_seed(1000 + step)
    return torch.randn(ROWS, 5, generator=numbers), torch.randint(3, (ROWS,), generator=numbers)


def train(engine: Engine, steps: Iterable[int], world: World) -> list[float]:
    """Take these steps; this process's loss at each."""
    losses = []
    dtype = next(engine.model.parameters()).dtype
    for step in steps:
        rows, labels = (part[world.process :: world.processes] for part in rows_of(step))
        loss = nn.functional.cross_entropy(engine.deepspeed(rows.to(dtype)).float(), labels)
        engine.deepspeed.backward(loss)
        engine.deepspeed.step()
        losses.append(float(loss.detach()))
    return losses


def plain(
    model: nn.Module, optim: Optimizer, build: Callable[[Any], torch.optim.Optimizer], steps: Iterable[int]
) -> dict[str, Tensor]:
    """The same steps without DeepSpeed: all rows at once, `build` makes the optimizer from the groups."""
    made = build(parameter_groups(model, optim, {}, {}))
    for step in steps:
        rows, labels = rows_of(step)
        made.zero_grad()
        nn.functional.cross_entropy(model(rows), labels).backward()
        nn.utils.clip_grad_norm_(model.parameters(), optim.clip)
        made.step()
    return {name: weight.detach() for name, weight in model.named_parameters()}


def furthest(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest difference; the names have to be the same."""
    assert found.keys() == expected.keys()
    return max((float((found[name].float() - expected[name].float()).abs().max()) for name in expected), default=0.0)
