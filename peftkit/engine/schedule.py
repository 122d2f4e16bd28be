"""Learning-rate schedules: a pure function from a step to the share of the peak rate."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from peftkit.config.section import Choice

Share = Annotated[float, Field(ge=0, le=1)]


class Schedule(Choice, kind="schedule", default="cosine"):
    """How the learning rate moves. It has no state: what it needs of the past it is given, so a resume is exact."""

    warmup: NonNegativeFloat = 0.03
    """Steps of linear warm-up: below 1 a share of all steps, from 1 on their number."""

    def factor(self, step: int, steps: int, evals: Sequence[float] = ()) -> float:
        """Share of the peak rate at `step` (0 is the first) of `steps`; `evals` are the validation losses so far."""
        warmup = self.warmup_steps(steps)
        if step < warmup:
            return (step + 1) / (warmup + 1)
        return self.after_warmup(step - warmup, max(1, steps - warmup), evals)

    def warmup_steps(self, steps: int) -> int:
        """Number of warm-up steps in a run of `steps`."""
        share = math.ceil(self.warmup * steps - 1e-9)  # 0.07 of 100 is 7, though the product is 7.000000000000001
        return min(steps, share if self.warmup < 1 else round(self.warmup))

    def after_warmup(self, step: int, steps: int, evals: Sequence[float]) -> float:
        """The same once the warm-up is over: `step` and `steps` count from its end."""
        raise NotImplementedError


class Constant(Schedule, name="constant"):
    """The peak rate all along."""

    def after_warmup(self, step: int, steps: int, evals: Sequence[float]) -> float:
        return 1.0


class WithFloor(Schedule):
    """A schedule that ends at a share of the peak rate."""

    floor: Share = 0.0
    """Share of the peak rate at the end."""

    def after_warmup(self, step: int, steps: int, evals: Sequence[float]) -> float:
        return self.floor + (1 - self.floor) * self.shape(min(1.0, step / steps))

    def shape(self, done: float) -> float:
        """From 1 to 0 as `done`, the share of the steps taken, goes from 0 to 1."""
        raise NotImplementedError


class Linear(WithFloor, name="linear"):
    """A straight line down to `floor`."""

    def shape(self, done: float) -> float:
        return 1 - done


class Cosine(WithFloor, name="cosine"):
    """Half a cosine down to `floor` (Loshchilov & Hutter, 2016, https://arxiv.org/abs/1608.03983)."""

    def shape(self, done: float) -> float:
        return (1 + math.cos(math.pi * done)) / 2


class CosineRestarts(WithFloor, name="cosine_restarts"):
    """Half cosines down to `floor`, each starting at the peak again (https://arxiv.org/abs/1608.03983)."""

    cycles: PositiveInt = 3
    """Number of half cosines."""

    def shape(self, done: float) -> float:
        return 0.0 if done >= 1 else (1 + math.cos(math.pi * ((done * self.cycles) % 1.0))) / 2


class Polynomial(WithFloor, name="polynomial"):
    """A power of the share of steps left, down to `floor`."""

    power: PositiveFloat = 2.0
    """Its exponent; 1 is linear."""

    def shape(self, done: float) -> float:
        return float((1 - done) ** self.power)


class Exponential(Schedule, name="exponential"):
    """The same factor every step, reaching `end` at the last."""

    end: Annotated[float, Field(gt=0, le=1)] = 0.01
    """Share of the peak rate at the end."""

    def after_warmup(self, step: int, steps: int, evals: Sequence[float]) -> float:
        return float(self.end ** min(1.0, step / steps))


class InverseSqrt(Schedule, name="inverse_sqrt"):
    """One over the square root of the step (Vaswani et al., 2017, https://arxiv.org/abs/1706.03762)."""

    timescale: PositiveInt | None = None
    """Steps after which the rate has fallen to 1/sqrt(2); left out: as many as the warm-up has."""

    def factor(self, step: int, steps: int, evals: Sequence[float] = ()) -> float:
        warmup = self.warmup_steps(steps)
        if step < warmup:
            return (step + 1) / (warmup + 1)
        scale = self.timescale or max(1, warmup)
        return math.sqrt(scale / (step - warmup + scale))


class WarmupStableDecay(WithFloor, name="warmup_stable_decay"):
    """The peak rate, then a straight line down to `floor` at the very end (https://arxiv.org/abs/2404.06395)."""

    decay: Share = 0.2
    """Share of the steps that decay."""

    def shape(self, done: float) -> float:
        return min(1.0, (1 - done) / self.decay) if self.decay else 1.0


class ReduceOnPlateau(Schedule, name="reduce_on_plateau"):
    """The rate is cut each time the validation loss has stopped falling; it needs `--eval.every`."""

    cut: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """What the rate is multiplied by."""
    patience: PositiveInt = 2
    """Evaluations without a lower loss that are waited for."""
    floor: Share = 0.0
    """Share of the peak rate below which it does not fall."""

    def after_warmup(self, step: int, steps: int, evals: Sequence[float]) -> float:
        factor, best, waited = 1.0, math.inf, 0
        for loss in evals:
            waited = 0 if loss < best else waited + 1
            best = min(best, loss)
            if waited > self.patience:
                factor, waited = factor * self.cut, 0
        return max(self.floor, factor)

    def conflicts(self, run: Any) -> Iterator[str]:
        if run.eval.every is None:
            yield "--schedule reduce_on_plateau looks at evaluations: say how often with --eval.every"
        if not run.data.validates:
            yield "--schedule reduce_on_plateau looks at validation rows, and there are none; give --data.validation"
