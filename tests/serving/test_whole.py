"""Texts that `generate` writes some at a time: each as it would be alone, followed while it is written."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch

from peftkit.config.sections import Generate
from peftkit.serving.jobs import Piece
from peftkit.serving.whole import WholeLane
from tests.serving.writing import PAD, Asker, finish, generated, prompt
from tests.tiny import tiny


def lane_of(model: Any, batch: int = 3, **settings: Any) -> WholeLane:
    return WholeLane(model.eval(), Generate(**settings), batch, nullcontext, PAD)


@pytest.mark.parametrize("family", ["t5", "bart", "llama"])
def test_each_text_is_that_of_generate(family: str) -> None:
    model = tiny(family, seed=2).eval()
    lane, askers = lane_of(model), [Asker() for _ in range(5)]
    for number, asker in enumerate(askers):
        lane.waiting.append(asker.writing(prompt(number, 3 + 4 * number), 4 + 2 * number))
    finish(lane)
    for number, asker in enumerate(askers):
        assert asker.ids == generated(model, prompt(number, 3 + 4 * number), 4 + 2 * number)


def test_beams_are_those_of_generate() -> None:
    model = tiny("bart", seed=2).eval()
    lane, askers = lane_of(model, num_beams=3, length_penalty=0.5), [Asker() for _ in range(3)]
    for number, asker in enumerate(askers):
        lane.waiting.append(asker.writing(prompt(number, 3 + 4 * number), 9))
    finish(lane)
    for number, asker in enumerate(askers):
        assert asker.ids == generated(model, prompt(number, 3 + 4 * number), 9, num_beams=3, length_penalty=0.5)


def test_pieces_come_while_it_is_written_and_a_text_can_be_given_up() -> None:
    model = tiny("t5", seed=2).eval()
    lane, asker, other = lane_of(model), Asker(), Asker()
    job, second = asker.writing(prompt(0, 5), 40), other.writing(prompt(1, 5), 6)
    job.streams = True
    seen: list[int] = []

    def told(one: Any) -> None:
        asker.told.append(one)
        seen.append(len(job.made))
        job.cancelled = len(job.made) == 10

    job.tell = told
    lane.waiting.extend([job, second])
    finish(lane)
    assert all(isinstance(one, Piece) for one in asker.told)
    assert seen == list(range(1, 11))
    assert other.ids == generated(model, prompt(1, 5), 6)


def test_a_seed_draws_the_same_and_alone() -> None:
    model, askers = tiny("bart", seed=2), [Asker() for _ in range(3)]
    lane = lane_of(model)
    for seed, asker in zip((1, 2, 1), askers, strict=True):
        lane.waiting.append(asker.writing(prompt(0, 5), 9, temperature=1.5, seed=seed))
    lane.step()
    assert (len(askers[0].told), len(askers[1].told)) == (1, 0)
    finish(lane)
    assert askers[0].ids == askers[2].ids != askers[1].ids


def test_a_text_that_breaks_the_model_ends_alone() -> None:
    model, askers = tiny("t5", seed=2).eval(), [Asker() for _ in range(3)]
    lane = lane_of(model)
    poison = prompt(7, 5)
    generate = model.generate

    def raising(input_ids: Any, **words: Any) -> Any:
        if any(torch.equal(row[:5], torch.tensor(poison)) for row in input_ids):
            raise RuntimeError("out of memory")
        return generate(input_ids=input_ids, **words)

    model.generate = raising  # type: ignore[method-assign]
    for asker, ids in zip(askers, (prompt(0, 3), poison, prompt(1, 8)), strict=True):
        lane.waiting.append(asker.writing(ids, 6))
    finish(lane)
    model.generate = generate  # type: ignore[method-assign]
    assert isinstance(askers[1].problem, RuntimeError)
    assert askers[0].ids == generated(model, prompt(0, 3), 6)
    assert askers[2].ids == generated(model, prompt(1, 8), 6)
