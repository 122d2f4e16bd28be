"""The search for the largest micro-batch: never a pass that does not fit, and no pass that would have fitted is far away."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as some

from peftkit.engine.micro import Taken, largest


class Machine:
    """Takes `fixed` whatever the rows, `once` for any rows and `row` for each; bursts if that is more than `room`."""

    def __init__(self, fixed: int, once: int, row: int, room: int) -> None:
        self.fixed, self.once, self.row, self.room = fixed, once, row, room
        self.tried: list[int] = []

    def fits(self, rows: int) -> bool:
        return self.fixed + self.once + self.row * rows <= self.room

    def take(self, rows: int) -> Taken:
        assert rows == 1 or self.fits(rows), f"{rows} rows burst it"
        self.tried.append(rows)
        return Taken(self.fixed, self.once + self.row * rows)


@given(
    some.integers(0, 1000),
    some.integers(0, 1000),
    some.integers(1, 100),
    some.integers(0, 100_000),
    some.integers(1, 300),
)
def test_it_finds_nearly_all_that_fits_and_tries_nothing_else(
    fixed: int, once: int, row: int, room: int, most: int
) -> None:
    machine = Machine(fixed, once, row, room)
    found = largest(machine.take, room, most)
    possible = max([rows for rows in range(1, most + 1) if machine.fits(rows)], default=1)
    assert 1 <= found <= possible
    if once == 0:
        assert found == possible
    assert len(machine.tried) <= 20


def test_plenty_of_room_takes_the_whole_share_of_a_step() -> None:
    machine = Machine(10, 5, 1, 10**9)
    assert largest(machine.take, machine.room, 12) == 12
    assert machine.tried == [1, 2, 4, 8, 12]


def test_the_poorest_process_decides() -> None:
    """Both see the same number, and each tries the same passes as the other."""
    rich, poor = Machine(0, 0, 1, 10**9), Machine(0, 0, 1, 5)
    found = [largest(machine.take, machine.room, 64, agree=lambda mine: min(mine, 5)) for machine in (rich, poor)]
    assert found == [5, 5] and rich.tried == poor.tried


def test_a_gpu_that_bursts_after_all_keeps_what_fitted() -> None:
    assert largest(lambda rows: Taken(0, rows) if rows <= 4 else None, 10**9, 64) == 4


@pytest.mark.parametrize("room", [0, -5])
def test_one_row_is_tried_in_any_case(room: int) -> None:
    machine = Machine(3, 0, 1, room)
    assert largest(machine.take, room, 8) == 1 and machine.tried == [1]
