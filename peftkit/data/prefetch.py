"""The next steps' batches, made by a thread while the step before them is computed."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress
from queue import Empty, Queue
from threading import Event, Thread
from typing import Any

import torch

Batches = Sequence[dict[str, Any]]
END = object()
WAIT = 5.0
"""Seconds that the thread is given to finish the batch it is at, when no more is wanted."""


def prefetched(batches: Iterator[Batches]) -> Generator[Batches]:
    """The same, one step in line and the next one under way; for a GPU in memory that it can be copied from meanwhile.

    `batches` is asked in a thread, in its order, so it may draw only from generators of its own (`vary` does). What goes wrong
    in it is raised where that batch would have come. Closing the iterator ends the thread.
    """
    line: Queue[Any] = Queue(1)
    over = Event()

    def work() -> None:
        try:
            for batch in batches:
                line.put(pinned(batch))
                if over.is_set():
                    return
            line.put(END)
        except BaseException as problem:  # whatever it is, it is the training's
            line.put(problem)

    thread = Thread(target=work, daemon=True, name="peftkit_prefetch")
    thread.start()
    try:
        while (item := line.get()) is not END:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        over.set()
        with suppress(Empty):
            line.get_nowait()  # the thread may be waiting for the place
        thread.join(WAIT)


def pinned(batches: Batches) -> Batches:
    """In page-locked memory, which a GPU copies from without the process waiting for it; elsewhere as they are."""
    if not torch.cuda.is_available():
        return batches
    return [
        {name: value.pin_memory() if isinstance(value, torch.Tensor) else value for name, value in batch.items()}
        for batch in batches
    ]
