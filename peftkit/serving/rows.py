"""Rows of many requests, answered together: what has come within a few milliseconds shares its forward passes."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence

from peftkit.serving.jobs import Answered, Failed, Rows
from peftkit.serving.worker import Lane, where
from peftkit.tasks.base import Row

log = logging.getLogger(__name__)


class RowLane(Lane[Rows]):
    """At most `batch` rows a step, of as many requests as there are: a long list does not keep a single row waiting."""

    def __init__(self, answers: Callable[[Sequence[Row]], list[Row]], batch: int, window: float) -> None:
        super().__init__()
        self.answers, self.batch, self.window = answers, batch, window
        self.begun: deque[Rows] = deque()

    @property
    def running(self) -> Sequence[Rows]:
        return tuple(self.begun)

    def clear(self) -> None:
        self.begun.clear()

    def step(self) -> bool:
        self._wait_for_more()
        for job in self.next():
            self.begun.append(job)
            self.waiting.popleft()
        taken = self._take()
        if not taken:
            return False
        rows = [row for job, count in taken for row in _next_rows(job, count)]
        try:
            found = iter(self.answers(rows))
            for job, count in taken:
                job.answers += [next(found) for _ in range(count)]
        except Exception:  # one row's fault, or too little memory for so many
            for job, count in taken:
                self._alone(job, count)
        self._tell([job for job, _ in taken])
        return True

    def _wait_for_more(self) -> None:
        """Requests that come at once arrive one after the other."""
        if self.begun or not self.waiting:
            return
        until = self.waiting[0].since + self.window
        while sum(len(job.rows) for job in tuple(self.waiting)) < self.batch and (left := until - time.monotonic()) > 0:
            time.sleep(min(left, 0.001))

    def _take(self) -> list[tuple[Rows, int]]:
        """The requests that come next, and how many rows of each: as equal shares as can be."""
        self.begun = deque(job for job in self.begun if not job.cancelled)
        share: dict[Rows, int] = {}
        free = self.batch
        while free and (open_jobs := [job for job in self.begun if share.get(job, 0) < job.left]):
            for job in open_jobs[:free]:
                share[job] = share.get(job, 0) + 1
                free -= 1
        # The next time it begins with those that came too short.
        self.begun = deque([*(job for job in self.begun if job not in share), *share])
        return list(share.items())

    def _alone(self, job: Rows, count: int) -> None:
        """Each row by itself: the one that the model cannot compute harms no other."""
        for row in _next_rows(job, count):
            try:
                job.answers += self.answers([row])
            except Exception as problem:
                log.error("a row could not be answered: %s", where(problem))
                if len(job.rows) == 1:
                    self.begun.remove(job)
                    job.tell(Failed(problem))
                    return
                job.answers.append({"error": f"the model cannot compute it ({type(problem).__name__})"})

    def _tell(self, jobs: Sequence[Rows]) -> None:
        for job in jobs:
            if job in self.begun and not job.left:
                self.begun.remove(job)
                job.tell(Answered(job.answers))


def _next_rows(job: Rows, count: int) -> Sequence[Row]:
    return job.rows[len(job.answers) : len(job.answers) + count]
