"""Held-out rows are scored for as long as there is time, and at least once."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from peftkit.evaluation.held import Held, number, recorded_in_time, score, size_in_memory
from tests.tiny import tiny
from tests.trained import label_rows


def held() -> tuple[Any, Any, Held]:
    task, batches = label_rows()
    numbered = [([8 * at + row for row in range(8)], batch) for at, batch in enumerate(batches * 3)]
    return tiny("bert", num_labels=3), task, Held(SimpleNamespace(processor=None), numbered, [], None)  # type: ignore[arg-type]


def test_no_batch_is_begun_after_the_time() -> None:
    model, task, rows = held()
    kept, records = recorded_in_time(model, rows, task, seconds=60)
    assert len(kept.batches) == 3
    assert [number for number, _ in records] == list(range(24))
    kept, records = recorded_in_time(model, rows, task, seconds=0)
    assert len(kept.batches) == 1
    assert len(records) == 8


def test_what_is_no_number_is_none() -> None:
    assert number(float("nan")) is None
    assert score(1.0, float("inf")).model_dump() == {"trained": 1.0, "export": None, "difference": None}


def test_shared_weights_are_counted_once() -> None:
    layer = torch.nn.Linear(10, 10, bias=False)
    twice = torch.nn.ModuleList([layer, torch.nn.Linear(10, 10, bias=False)])
    twice[1].weight = layer.weight
    assert size_in_memory(twice) == 400
