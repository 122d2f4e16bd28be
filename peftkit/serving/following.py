"""Between a request, which waits in an event loop, and its jobs, which a thread computes."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from typing import Any, TypeVar

from starlette.requests import Request

from peftkit.serving.jobs import Failed, Job, Told
from peftkit.serving.problems import AskedError
from peftkit.serving.worker import ClosedError, FullError, Lane, Worker

T = TypeVar("T")
J = TypeVar("J", bound=Job)
RETRY = 1
"""Seconds after which one who was turned away may try again."""


class Post:
    """What the jobs of one request tell, in the order in which it comes."""

    def __init__(self, seconds: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._told: asyncio.Queue[tuple[int, Told]] = asyncio.Queue()
        self._until = time.monotonic() + seconds

    def teller(self, number: int) -> Callable[[Told], None]:
        """For the job with this number; called from the thread that computes."""

        def tell(told: Told) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
                self._loop.call_soon_threadsafe(self._told.put_nowait, (number, told))

        return tell

    async def read(self, jobs: int) -> AsyncIterator[tuple[int, Told]]:
        """All that is told until so many jobs have ended. AskedError if one failed, or it takes too long."""
        while jobs:
            try:
                async with asyncio.timeout(max(0.0, self._until - time.monotonic())):
                    number, told = await self._told.get()
            except TimeoutError:
                raise AskedError("the answer took longer than a request may", None, "timeout", 504) from None
            if isinstance(told, Failed):
                raise failed(told.problem)
            jobs -= hasattr(told, "tokens") or hasattr(told, "answers")
            yield number, told


def failed(problem: Exception) -> AskedError:
    """What the asker is told of it: not its words, which speak of the inside."""
    if isinstance(problem, ClosedError):
        return AskedError("the service is stopping", None, None, 503)
    return AskedError(f"the model cannot compute this ({type(problem).__name__})", None, None, 500)


def submit(worker: Worker, lane: Lane[J], jobs: Sequence[J]) -> None:
    """Have the jobs computed. AskedError if there is no room for them. Whoever calls it cancels them in the end."""
    try:
        worker.submit(lane, jobs)
    except FullError as problem:
        raise AskedError(str(problem), None, "queue_full", 429) from None
    except ClosedError as problem:
        raise failed(problem) from None


@contextlib.contextmanager
def submitted(worker: Worker, lane: Lane[J], jobs: Sequence[J]) -> Iterator[None]:
    """The jobs are computed until they end, or until this is left."""
    submit(worker, lane, jobs)
    try:
        yield
    finally:
        worker.cancel(jobs)


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T | None:
    """What comes of the work; None, and the work is given up, if the asker has gone."""
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        for one in (task, gone):
            one.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
