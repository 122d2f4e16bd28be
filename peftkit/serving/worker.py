"""The one thread that computes: it goes round the models that have work, a bounded piece of work at a time."""

from __future__ import annotations

import logging
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Generic, TypeVar

from peftkit.serving.jobs import Failed, Job

log = logging.getLogger(__name__)
J = TypeVar("J", bound=Job)


class FullError(Exception):
    """As many requests wait as may."""


class ClosedError(Exception):
    """The service stops, and computes nothing any more."""


class Lane(ABC, Generic[J]):
    """One model's work of one kind. `step` is called by the worker alone."""

    def __init__(self) -> None:
        self.waiting: deque[J] = deque()
        """Asked for, and not begun. Appended to by any thread, taken from by the worker."""

    @abstractmethod
    def step(self) -> bool:
        """Do some of the work, so little that others do not wait long; whether there was any. Every job that fails is told."""

    @property
    @abstractmethod
    def running(self) -> Sequence[J]:
        """Begun, and not finished."""

    @abstractmethod
    def clear(self) -> None:
        """Forget what runs."""

    def next(self) -> Iterator[J]:
        """Those that wait, first come first served, without the ones that nobody waits for any more."""
        while self.waiting:
            if self.waiting[0].cancelled:
                self.waiting.popleft()
            else:
                yield self.waiting[0]

    def fail(self, problem: Exception) -> None:
        """Tell all jobs that nothing comes of them."""
        for job in (*self.running, *self.waiting):
            job.tell(Failed(problem))
        self.clear()
        self.waiting.clear()


class Worker:
    """Start it with `start`; `close` ends it, and every job with it."""

    def __init__(self, lanes: Sequence[Lane[Job]], max_queue: int) -> None:
        self.lanes, self.max_queue = lanes, max_queue
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="peftkit-worker", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def submit(self, lane: Lane[J], jobs: Sequence[J]) -> None:
        """All of the jobs, or none of them: FullError where too many wait."""
        with self._changed:
            if self._closed:
                raise ClosedError("the service is stopping")
            if self.waiting + len(jobs) > self.max_queue:
                raise FullError(f"{self.waiting} requests wait already, and at most {self.max_queue} may")
            lane.waiting.extend(jobs)
            self._changed.notify()

    def cancel(self, jobs: Sequence[Job]) -> None:
        """Nobody waits for these any more."""
        with self._changed:
            for job in jobs:
                job.cancelled = True
            self._changed.notify()

    def close(self) -> None:
        """End what runs, and wait for the step that is being computed."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(timeout=60)

    @property
    def waiting(self) -> int:
        return sum(not job.cancelled for lane in self.lanes for job in tuple(lane.waiting))

    @property
    def running(self) -> int:
        return sum(len(lane.running) for lane in self.lanes)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def _run(self) -> None:
        while not self._closed:
            worked = [self._step(lane) for lane in self.lanes]
            if not any(worked):
                with self._changed:
                    self._changed.wait_for(lambda: self._closed or any(lane.waiting for lane in self.lanes))
        for lane in self.lanes:
            lane.fail(ClosedError("the service has stopped"))

    @staticmethod
    def _step(lane: Lane[Job]) -> bool:
        try:
            return lane.step()
        except Exception as problem:  # no job's own: a lane that is broken must not end the others
            log.error("a step failed: %s", where(problem))
            lane.fail(problem)
            return True


def where(problem: BaseException) -> str:
    """What is told of an error in a log: its kind and its place, as its words may hold what somebody asked."""
    last = problem.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    place = f" in {last.tb_frame.f_code.co_filename}, line {last.tb_lineno}" if last else ""
    return f"{type(problem).__name__}{place}"
