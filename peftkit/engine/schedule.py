"""Learning-rate schedules: a pure function from a step to the share of the peak rate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

from pydantic import Field, NonNegativeFloat

from peftkit.config.section import Choice


class Schedule(Choice, kind="schedule", default="cosine"):
    """How the learning rate moves. It has no state: what it needs of the past it is given, so a resume is exact."""

    warmup: NonNegativeFloat = 0.03
    """Steps of linear warm-up: below 1 a share of all steps, from 1 on their number."""

    def factor(self, step: int, steps: int, evals: Sequence[float] = ()) -> float:
        """Share of the peak rate at `step` (0 is the first) of `steps`; `evals` are the evaluations' losses so far."""
        warmup = self.warmup_steps(steps)
        if step < warmup:
            return (step + 1) / (warmup + 1)
        return self.after_warmup(step - warmup, max(1, steps - warmup), evals)

    def warmup_steps(self, steps: int) -> int:
        """Number of warm-up steps in a run of `steps`."""
        return round(self.warmup * steps) if self.warmup < 1 else round(self.warmup)

    def after_warmup(self, step: int, steps: int, evals: Sequence[float]) -> float:
        """The same once the warm-up is over, both counted from its end."""
        raise NotImplementedError


class Cosine(Schedule, name="cosine"):
    """Half a cosine down to `floor` (Loshchilov & Hutter, 2016, https://arxiv.org/abs/1608.03983)."""

    floor: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the peak rate at the end."""

    def after_warmup(self, step: int, steps: int, evals: Sequence[float]) -> float:
        return self.floor + (1 - self.floor) * (1 + math.cos(math.pi * min(1.0, step / steps))) / 2
