"""Rows of many requests in shared batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from peftkit.serving.jobs import Answered, Failed, Rows, Told
from peftkit.serving.rows import RowLane
from peftkit.tasks.base import Row
from tests.serving.writing import finish


def asking(rows: Sequence[Row]) -> tuple[Rows, list[Told]]:
    told: list[Told] = []
    return Rows(told.append, rows=rows), told


def lane_of(batch: int, sizes: list[int] | None = None) -> RowLane:
    def answers(rows: Sequence[Row]) -> list[Row]:
        if sizes is not None:
            sizes.append(len(rows))
        if any("poison" in row for row in rows):
            raise RuntimeError
        return [{"answer": row["n"]} for row in rows]

    return RowLane(answers, batch, window=0)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(1, 5))
def test_everyone_gets_his_own_answers(counts: list[int], batch: int) -> None:
    sizes: list[int] = []
    lane, asked = lane_of(batch, sizes), []
    for number, count in enumerate(counts):
        job, told = asking([{"n": (number, row)} for row in range(count)])
        lane.waiting.append(job)
        asked.append(told)
    finish(lane)
    for number, (count, told) in enumerate(zip(counts, asked, strict=True)):
        assert told == [Answered([{"answer": (number, row)} for row in range(count)])]
    assert max(sizes) <= batch
    assert len(sizes) == -(-sum(counts) // batch)  # no batch has a free place while rows wait


def test_a_long_list_does_not_keep_a_single_row_waiting() -> None:
    lane = lane_of(2)
    long, _ = asking([{"n": number} for number in range(1000)])
    lane.waiting.append(long)
    lane.step()
    short, told = asking([{"n": 5}])
    lane.waiting.append(short)
    lane.step()
    assert told == [Answered([{"answer": 5}])]


def test_who_has_left_is_not_answered() -> None:
    lane = lane_of(2)
    (first, told), (second, other) = asking([{"n": n} for n in range(9)]), asking([{"n": 1}])
    lane.waiting.extend([first, second])
    lane.step()
    first.cancelled = True
    finish(lane)
    assert not told
    assert other == [Answered([{"answer": 1}])]


def test_a_row_that_breaks_the_model_is_told_alone() -> None:
    lane = lane_of(4)
    poison: dict[str, Any] = {"n": 0, "poison": True}
    (listed, told), (single, failed), (good, fine) = asking([{"n": 1}, poison]), asking([poison]), asking([{"n": 2}])
    lane.waiting.extend([listed, single, good])
    finish(lane)
    assert told == [Answered([{"answer": 1}, {"error": "the model cannot compute it (RuntimeError)"}])]
    assert isinstance(failed[0], Failed)
    assert fine == [Answered([{"answer": 2}])]
