"""Which rows make which step, and how a step is dealt to processes and micro-batches: pure functions of numbers.

What is learnt depends on `step_rows` alone. How its rows are dealt changes padding and speed, and no gradient.
"""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import accumulate, cycle, islice, pairwise
from typing import Any

import torch

from peftkit.config.sections import Batch
from peftkit.data.draws import Draws
from peftkit.data.store import Store
from peftkit.tasks import Task
from peftkit.tasks.base import WINDOWS
from peftkit.tasks.base import Batch as MicroBatch


def order(n: int, seed: int, epoch: int, draws: Draws | None = None) -> list[int]:
    """The epoch's rows in its order, the same in any world: all of 0 .. n-1, or those that `draws` takes."""
    return list(_order(n, seed, epoch, draws))


@lru_cache(maxsize=2)
def _order(n: int, seed: int, epoch: int, draws: Draws | None) -> tuple[int, ...]:
    rows = draws.epoch(seed, epoch) if draws else list(range(n))
    random.Random(f"order {seed} {epoch}").shuffle(rows)
    return tuple(rows)


def steps_per_epoch(n: int, total: int) -> int:
    """Steps in an epoch of n rows; the last one takes what is left."""
    return -(-n // total)


def step_rows(step: int, n: int, total: int, seed: int, draws: Draws | None = None) -> list[int]:
    """The rows of a step (0 is the run's first), without going through the steps before it.

    `n` is an epoch's number of rows: `draws.size`, where there are draws.
    """
    epoch, position = divmod(step, steps_per_epoch(n, total))
    return list(_order(n, seed, epoch, draws)[position * total : (position + 1) * total])


def deal(rows: Sequence[int], lengths: Sequence[int], batch: Batch, processes: int, process: int) -> list[list[int]]:
    """The micro-batches of one process, as many of them as in every other (some may be empty).

    Each has at most `batch.micro` rows and takes at most `batch.tokens` places, padding included, as far as these are numbers
    and it has more than one row. The step's rows are sorted by length, the longest first, and dealt in turns, so that rows of
    like lengths share a micro-batch and the processes' k-th micro-batches take about as long. `lengths[row]` is the row's
    length. Neighbours that share rows (`batch.sequence_parallel`) get the same.
    """
    processes, process = processes // batch.sequence_parallel, process // batch.sequence_parallel
    longest_first = sorted(rows, key=lambda row: (-lengths[row], row))
    most = batch.micro if isinstance(batch.micro, int) else len(rows)
    if batch.tokens is None:
        count = processes * -(-len(rows) // (most * processes))
        small, larger = divmod(len(rows), count)
        edges = [0, *accumulate(small + (number < larger) for number in range(count))]
    else:
        edges = _edges([lengths[row] for row in longest_first], most, batch.tokens, processes)
    return [longest_first[left:right] for left, right in list(pairwise(edges))[process::processes]]


def _edges(lengths: Sequence[int], rows: int, tokens: int, processes: int) -> list[int]:
    """Where to cut rows of falling lengths: as few passes as can be, of costs as equal as can be."""
    least = len(_cut(lengths, rows, tokens)) - 1
    count = processes * -(-least // processes)
    # The smallest bound that needs no more passes, so that none of them costs much more than the others.
    bound = bisect_left(range(tokens), True, key=lambda at: len(_cut(lengths, rows, at)) - 1 <= count)
    edges = _cut(lengths, rows, bound)
    while len(edges) - 1 < min(count, len(lengths)):
        at = max(range(len(edges) - 1), key=lambda at: (edges[at + 1] - edges[at] > 1, _cost(lengths, edges, at)))
        edges.insert(at + 1, (edges[at] + edges[at + 1] + 1) // 2)
    return edges + [len(lengths)] * (count + 1 - len(edges))


def _cut(lengths: Sequence[int], rows: int, tokens: int) -> list[int]:
    edges = [0]
    for at in range(1, len(lengths)):
        taken = at - edges[-1]
        if taken == rows or (taken + 1) * lengths[edges[-1]] > tokens:
            edges.append(at)
    return [*edges, len(lengths)]


def _cost(lengths: Sequence[int], edges: Sequence[int], at: int) -> int:
    return (edges[at + 1] - edges[at]) * lengths[edges[at]]


def useful(store: Store, batch: Batch, seed: int, processes: int) -> float:
    """Which share of the places that the first steps' micro-batches take is tokens: 1 is no padding."""
    tokens, places = 0, 0
    for step in range(min(steps_per_epoch(store.epoch, batch.total), 1 + 4096 // batch.total)):
        rows = step_rows(step, store.epoch, batch.total, seed, store.draws)
        for process in range(processes):
            for micro in deal(rows, store.lengths, batch, processes, process):
                lengths = [store.lengths[row] for row in micro]
                tokens, places = tokens + sum(lengths), places + len(lengths) * max(lengths, default=0)
    return tokens / max(1, places)


def training_batches(
    store: Store,
    task: Task,
    processor: Any,
    batch: Batch,
    seed: int,
    processes: int,
    process: int,
    first: int,
    last: int,
) -> Iterator[list[MicroBatch]]:
    """This process's micro-batches of the steps `first` .. `last`-1, a list a step.

    All processes get as many; where one has no rows left it gets a batch without targets.
    """
    for step in range(first, last):
        rows = step_rows(step, store.epoch, batch.total, seed, store.draws)
        shortest = min(rows, key=lambda row: (store.lengths[row], row))
        dealt = deal(rows, store.lengths, batch, processes, process)
        yield [_batch(store, task, processor, micro, shortest, f"{seed} {step}") for micro in dealt]


def shortest_batch(store: Store, task: Task, processor: Any) -> MicroBatch:
    """Two of the shortest rows, of different lengths if there are such: what a pass costs the least for."""
    shortest = sorted(range(len(store)), key=lambda row: (store.lengths[row], row))
    longer = (row for row in shortest if store.lengths[row] > store.lengths[shortest[0]])
    chosen = [shortest[0], next(longer, shortest[min(1, len(shortest) - 1)])]
    return _collated(store, task, processor, chosen)


def longest_batch(store: Store, task: Task, processor: Any, count: int) -> MicroBatch:
    """A micro-batch of so many rows, the longest there are: what takes the most memory. Nothing is learnt from it."""
    longest = sorted(range(len(store)), key=lambda row: (-store.lengths[row], row))[:count]
    return _collated(store, task, processor, islice(cycle(longest), count))


def _collated(store: Store, task: Task, processor: Any, chosen: Iterable[int]) -> MicroBatch:
    unknown = dict.fromkeys(task.reference, 0.0)  # what a reference says of a row is found out later
    rows = [{**unknown, **store[row]} for row in chosen]
    batch = task.collate([task.vary(row, processor, random.Random(0)) for row in rows], processor)
    return {**batch, "ahead": torch.zeros(())} if task.looks_ahead else batch


def evaluation_batches(
    store: Store,
    task: Task,
    processor: Any,
    size: int,
    processes: int,
    process: int,
    rows: int | None = None,
    tokens: int | None = None,
) -> Iterator[tuple[list[int], MicroBatch]]:
    """This process's batches of the first `rows` rows' windows, each with the windows' numbers: at most `size` of them, and no
    more than one that would take more than `tokens` places, padding included.

    A batch's windows do not depend on the world, so neither does any score; all processes get as many batches, and what
    makes up the number has no numbers and no targets.
    """
    count = store.windows_of(rows)
    longest_first = sorted(range(count), key=lambda row: (-store.lengths[row], row))
    lengths = [store.lengths[row] for row in longest_first]
    edges = _cut(lengths, size, tokens or size * max(lengths, default=1))
    chunks = [longest_first[left:right] for left, right in pairwise(edges) if left < right]
    chunks += [[]] * (-len(chunks) % processes)
    for chunk in chunks[process::processes]:
        yield chunk, _batch(store, task, processor, chunk, longest_first[-1], "evaluation")


def _batch(store: Store, task: Task, processor: Any, rows: Sequence[int], spare: int, seed: str) -> MicroBatch:
    drawn = [task.vary(store[row], processor, random.Random(f"vary {seed} {row}")) for row in rows or [spare]]
    batch = task.collate(drawn, processor)
    if store.first is not None:
        batch[WINDOWS] = torch.tensor([store.first + row for row in rows], dtype=torch.long)
    return batch if rows else task.blank(batch)
