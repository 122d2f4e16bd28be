"""The thread that computes: who waits, who is turned away, and who is told when it ends."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

import pytest

from peftkit.serving.jobs import Failed, Job, Told
from peftkit.serving.worker import ClosedError, FullError, Lane, Worker, where


class Held(Lane[Job]):
    """Takes a job a step, and holds it until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.job: list[Job] = []
        self.go, self.begun = threading.Event(), threading.Event()
        self.done: list[Job] = []

    @property
    def running(self) -> Sequence[Job]:
        return self.job

    def clear(self) -> None:
        self.job = []

    def step(self) -> bool:
        for job in self.next():
            self.waiting.popleft()
            self.job = [job]
            self.begun.set()
            assert self.go.wait(10)
            self.done.append(job)
            self.clear()
            return True
        return False


@pytest.fixture
def lane() -> Held:
    return Held()


@pytest.fixture
def worker(lane: Held) -> Iterator[Worker]:
    found = Worker([lane], max_queue=2)
    found.start()
    yield found
    lane.go.set()
    found.close()
    assert not found.alive


def job(told: list[Told]) -> Job:
    return Job(told.append)


def test_too_many_are_turned_away_all_or_none(worker: Worker, lane: Held) -> None:
    first = job([])
    worker.submit(lane, [first])
    assert lane.begun.wait(10)
    waiting = [job([]), job([])]
    with pytest.raises(FullError, match="0 requests wait already, and at most 2 may"):
        worker.submit(lane, [*waiting, job([])])
    worker.submit(lane, waiting)
    assert (worker.running, worker.waiting) == (1, 2)
    with pytest.raises(FullError):
        worker.submit(lane, [job([])])
    worker.cancel(waiting[:1])
    assert worker.waiting == 1
    last = job([])
    worker.submit(lane, [last])  # the place of one who has left
    lane.go.set()
    while worker.waiting or worker.running:
        pass
    assert lane.done == [first, waiting[1], last]


def test_its_end_is_told_to_all(worker: Worker, lane: Held) -> None:
    told: list[Told] = []
    worker.submit(lane, [job([])])
    assert lane.begun.wait(10)
    worker.submit(lane, [job(told), job(told)])
    ending = threading.Thread(target=worker.close)
    ending.start()
    lane.go.set()
    ending.join(10)
    assert [isinstance(one, Failed) and isinstance(one.problem, ClosedError) for one in told] == [True, True]
    with pytest.raises(ClosedError):
        worker.submit(lane, [job([])])


def test_a_lane_that_is_broken_ends_its_own_jobs_alone() -> None:
    class Broken(Held):
        def step(self) -> bool:
            if self.waiting:
                raise ValueError("what somebody asked")
            return False

    broken, good = Broken(), Held()
    good.go.set()
    worker = Worker([broken, good], max_queue=5)
    told: list[Told] = []
    worker.start()
    worker.submit(broken, [job(told)])
    worker.submit(good, [job([])])
    worker.close()
    assert isinstance(told[0], Failed)
    assert worker.alive is False


def test_a_log_has_no_words_of_an_error() -> None:
    try:
        raise ValueError("what somebody asked")
    except ValueError as problem:
        assert where(problem).startswith("ValueError in ")
        assert __file__ in where(problem)
        assert "asked" not in where(problem)
