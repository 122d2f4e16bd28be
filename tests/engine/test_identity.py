"""Whose checkpoint it is, in words."""

from __future__ import annotations

from typing import Any

import pytest

from peftkit.engine.identity import Identity, difference

SETTINGS = {"seed": 42, "strategy": {"name": "lora", "rank": 16}, "optim": {"name": "sgd", "lr": 0.1}, "augment": None}
MINE = Identity(SETTINGS, "abc")


def written(rows: str = "abc", **changed: Any) -> dict[str, Any]:
    return Identity(SETTINGS | changed, rows).plain()


@pytest.mark.parametrize(
    ("theirs", "told"),
    [
        (written(), None),
        (written(seed=7), "its --seed is 7, and here 42"),
        (written(strategy={"name": "lora", "rank": 8}), "its --strategy.rank is 8, and here 16"),
        (written(strategy={"name": "full"}), "its --strategy is full, and here lora"),
        (written(augment={"copies": 2}), "its --augment is {'copies': 2}, and here None"),
        (written(seed=7, augment=1), "its --augment is 1, and here None; its --seed is 7, and here 42"),
        (written(rows="abd"), "it learnt other rows than --data has now"),
        (written(rows="abd", seed=7), "its --seed is 7, and here 42"),
        (written(new_in_a_later_version=1), None),
        (None, "its manifest.json does not say of which"),
        ({"settings": []}, "its manifest.json does not say of which"),
    ],
)
def test_a_run_is_known_by_what_it_learns(theirs: Any, told: str | None) -> None:
    found = difference(theirs, MINE)
    assert found is None if told is None else found is not None and found.startswith(told)


def test_of_many_differences_the_first_are_named() -> None:
    mine = Identity({f"setting{number}": number for number in range(9)}, "")
    theirs = Identity({f"setting{number}": -number for number in range(9)}, "").plain()
    assert (difference(theirs, mine) or "").endswith("its --setting3 is -3, and here 3; and 5 settings more")
