"""Batches made ahead are the same ones in the same order, and whatever happens to them happens in its place."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from peftkit.config.sections import Batch
from peftkit.data.batches import training_batches
from peftkit.data.prefetch import prefetched
from peftkit.data.store import write
from peftkit.tasks import MaskedLM
from tests.tiny import tokenizer

Step = list[dict[str, Any]]


def counted(made: list[int], count: int, fails_at: int = -1) -> Iterator[Step]:
    for number in range(count):
        if number == fails_at:
            raise ValueError(f"row {number} is broken")
        made.append(number)
        yield [{"number": torch.tensor([number])}]


def running() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "peftkit_prefetch"]


def test_all_come_in_their_order_and_the_thread_ends() -> None:
    made: list[int] = []
    assert [int(step[0]["number"]) for step in prefetched(counted(made, 9))] == [*range(9)]
    assert made == [*range(9)]
    assert not running()


def test_few_are_made_ahead_of_what_is_taken() -> None:
    made: list[int] = []
    steps = prefetched(counted(made, 100))
    for taken in range(1, 4):
        next(steps)
        time.sleep(0.05)
        assert taken <= len(made) <= taken + 2
    steps.close()
    assert not running()


def test_what_goes_wrong_is_raised_where_its_batch_would_come() -> None:
    steps = prefetched(counted([], 9, fails_at=3))
    assert [int(next(steps)[0]["number"]) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="row 3 is broken"):
        next(steps)
    assert not running()


def test_one_that_is_not_read_to_its_end_is_closed_with_what_reads_it() -> None:
    def reader() -> Iterator[Step]:
        yield from prefetched(counted([], 100))

    steps = reader()
    next(steps)
    assert running()
    del steps
    assert not running()


def test_what_is_drawn_for_each_row_is_drawn_alike_and_torchs_numbers_are_left_alone(tmp_path: Path) -> None:
    words = tokenizer()
    task = MaskedLM.model_validate({"mask_token": "<|user|>"})
    rows = [{"text": f"a row of words number {number} " * (1 + number % 5)} for number in range(20)]
    store = write(tmp_path / "store", [task.encode(row, words, 100) for row in rows])

    def batches() -> Iterator[Step]:
        return training_batches(store, task, words, Batch(total=8, micro=3), 7, 1, 0, 0, 6)

    torch.manual_seed(1)
    before = torch.get_rng_state()
    for plain, ahead in zip(batches(), prefetched(batches()), strict=True):
        for one, other in zip(plain, ahead, strict=True):
            assert one.keys() == other.keys()
            assert all(value.equal(other[name]) for name, value in one.items())
    assert torch.get_rng_state().equal(before)
