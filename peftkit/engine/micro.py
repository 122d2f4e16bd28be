"""`--batch.micro auto`: the largest micro-batch that fits, found by forward and backward passes that take no step.

What passes take is measured at 1, 2, 4, ... rows. It grows with the rows, beside a part that does not; so what a row took in a
smaller pass is at least what it takes in a larger one, and no pass is tried that would not fit.
"""

from __future__ import annotations

import resource
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import psutil
import torch

from peftkit.engine.loop import Learnt, accumulate
from peftkit.engine.memory import available, forget_peak, give_back, held, peak, used, vm_peak
from peftkit.engine.nonfinite import drop, kept_statistics, put_statistics
from peftkit.engine.open import Engine
from peftkit.engine.world import World

SHARE = 0.8
"""Of the memory that is left, what a training may take: rows of other lengths pad otherwise, and memory is never packed."""
SPARE = 64 * 2**20
"""Bytes of it that are left for what comes with the steps: threads, their stacks, buffers of saving and scoring."""


@dataclass(frozen=True)
class Taken:
    """Bytes that a pass took at most: `fixed` whatever its rows (gradients, what libraries make once), `rows` for them."""

    fixed: int
    rows: int


def largest(
    take: Callable[[int], Taken | None], room: int, most: int, agree: Callable[[int], int] = lambda mine: mine
) -> int:
    """The most rows, up to `most`, whose pass takes no more than `room`; `take` runs a pass, and gives None if it did not fit.

    `agree` makes one number of what the processes have found, the same on all of them. One row is tried in any case.
    """
    fits, taken = 1, take(1)
    while taken and fits < most:
        bound = agree(min(most, int(fits * max(0, room - taken.fixed) / max(1, taken.rows))))
        if bound <= fits or bound - fits <= fits // 8:  # what is left is not worth another pass
            return max(fits, bound)
        wanted = min(bound, 2 * fits)
        taken = take(wanted)
        fits = wanted if taken else fits
    return fits


@dataclass
class Probe:
    """Passes of an engine that nobody trains with, and what they take."""

    engine: Engine
    task: Learnt
    world: World
    batch_of: Callable[[int], dict[str, Any]]
    """So many rows, the longest there are."""
    room: int = field(init=False)
    """Bytes that this process could take when no pass had been run."""

    def __post_init__(self) -> None:
        give_back()
        self.world.wait()  # the others' engines stand too: what is left now is left for all
        self.room = available(self.world)
        self._used, self._before = used(), held(self.engine, self.engine.model).total
        self._address_space = int(psutil.Process().memory_info().vms)
        self._limited = resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY

    def take(self, rows: int) -> Taken | None:
        """Run a pass forward and back and throw its gradient away; None where a GPU's memory did not suffice."""
        model = self.engine.model
        kept = kept_statistics(model)
        forget_peak()
        try:
            self.engine.deepspeed.train()
            accumulate(self.engine, [self.batch_of(rows)], self.task, self.world, 1.0)
        except torch.OutOfMemoryError:
            if self.world.processes > 1 or rows == 1:
                raise  # the others wait for this one's part of the gradient
            torch.cuda.empty_cache()
            return None
        finally:
            put_statistics(model, kept)
        most = peak() - self._used
        if self._limited:
            most = max(most, vm_peak() - self._address_space)
        fixed = max(0, held(self.engine, model).total - self._before)
        drop(self.engine)
        give_back()
        return Taken(fixed, max(0, most - fixed))

    def agree(self, mine: int) -> int:
        """The least of what all processes say."""
        found: int = self.world.share(min(self.world.gather(mine), default=0))
        return found
