"""Random numbers go on where they were, and in another world with others that are always the same."""

from __future__ import annotations

import random

import numpy as np
import torch

from peftkit.engine.random_state import random_state, seed_again, seed_all, set_random_state


def drawn() -> list[float]:
    return [random.random(), float(np.random.rand()), float(torch.rand(()))]


def test_they_go_on_where_they_were() -> None:
    seed_all(3)
    drawn()
    state = random_state()
    expected = drawn()
    drawn()
    set_random_state(state)
    assert drawn() == expected


def test_in_another_world_they_are_others_but_always_the_same() -> None:
    found: dict[tuple[int, ...], list[float]] = {}
    for seed, step, process in ((42, 10, 0), (42, 10, 1), (42, 11, 0), (99, 10, 0)):
        seed_again(seed, step, process)
        found[seed, step, process] = drawn()
        seed_again(seed, step, process)
        assert drawn() == found[seed, step, process]
        seed_all(seed, process)
        found[seed, process] = drawn()
    assert len({tuple(numbers) for numbers in found.values()}) == len(found), (
        "nothing of the run's beginning comes again"
    )
