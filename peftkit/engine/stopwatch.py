"""Where a step's time goes: every moment belongs to one part, so that the parts add up to the whole."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.profiler import record_function

from peftkit.engine.open import Engine

Item = TypeVar("Item")
DATA, FORWARD, BACKWARD, OPTIMIZER, TALK, LOOP = "data", "forward", "backward", "optimizer", "communication", "the loop"
PARTS = (DATA, FORWARD, BACKWARD, OPTIMIZER, TALK, LOOP)
TALKING = (
    *("all_reduce", "reduce", "broadcast", "barrier", "all_gather", "all_gather_into_tensor", "all_to_all_single"),
    *("reduce_scatter", "reduce_scatter_tensor", "gather_object", "broadcast_object_list", "all_gather_object"),
)
"""Of torch.distributed, which DeepSpeed and `World` call by these names."""


class Stopwatch:
    """Seconds and CPU seconds of each part since `begin`. One part runs at any moment; what stands in no other is the loop."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """From zero, in the loop."""
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self.cpu = dict.fromkeys(PARTS, 0.0)
        self._part, self._since = LOOP, now()

    def turn(self, part: str) -> str:
        """What runs from here on is `part`; the one that ran."""
        clock, cpu = now()
        before = self._part
        self.seconds[before] += clock - self._since[0]
        self.cpu[before] += cpu - self._since[1]
        self._part, self._since = part, (clock, cpu)
        return before

    @contextmanager
    def during(self, part: str) -> Iterator[None]:
        before = self.turn(part)
        try:
            with record_function(f"peftkit: {part}"):
                yield
        finally:
            self.turn(before)

    def each(self, items: Iterable[Item]) -> Iterator[Item]:
        """The same items; waiting for one is `data`."""
        waiting = iter(items)
        while True:
            with self.during(DATA):
                item = next(waiting, None)
            if item is None:
                return
            yield item

    def around(self, function: Callable[..., Any], part: str, after: str | None = None) -> Callable[..., Any]:
        """The function, its time counted as `part`; `after` is what runs behind it (left out: what ran before it)."""

        def counted(*words: Any, **named: Any) -> Any:
            with self.during(part):
                result = function(*words, **named)
            if after:
                self.turn(after)
            return result

        return counted


def now() -> tuple[float, float]:
    """Seconds, and the process's CPU seconds; a GPU's work counts where it was asked for."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter(), time.process_time()


@contextmanager
def timed(engine: Engine, watch: Stopwatch) -> Iterator[None]:
    """Count this engine's passes and steps, and what its process says to others and waits for from them.

    The loss stands between the forward pass and the backward one, and is counted with the former.
    """
    own, work = vars(engine.deepspeed), torch._C._distributed_c10d.Work
    before = {name: own[name] for name in ("forward", "backward", "step") if name in own}
    talk = {name: getattr(dist, name) for name in TALKING}
    wait = work.wait
    own["forward"] = watch.around(engine.deepspeed.forward, FORWARD, after=FORWARD)
    own["backward"] = watch.around(engine.deepspeed.backward, BACKWARD, after=LOOP)
    own["step"] = watch.around(engine.deepspeed.step, OPTIMIZER, after=LOOP)
    for name, function in talk.items():
        setattr(dist, name, watch.around(function, TALK))
    work.wait = watch.around(wait, TALK)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for name in ("forward", "backward", "step"):
            del own[name]
        own.update(before)
        for name, function in talk.items():
            setattr(dist, name, function)
        work.wait = wait  # type: ignore[method-assign]
