"""Scoring a split: every row once, in the split's order, whatever the batches, and without a trace in the model.

That 1, 2 and 3 processes give the same last digit is held by tests/test_promises.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from peftkit.data.store import Writer, write
from peftkit.engine.ds_config import Plan, fill, read_config
from peftkit.engine.open import Engine, open_engine
from peftkit.engine.optim import Optimizer
from peftkit.engine.state import capture
from peftkit.engine.world import World, joined
from peftkit.evaluation.score import Split, compute, score
from peftkit.metrics import Metric
from peftkit.tasks import CausalLM, Task
from tests.tiny import tiny, tokenizer

TASK = Task.model_validate("causal_lm")
METRICS = [Metric.model_validate(name) for name in ("loss", "perplexity", "token_accuracy")]
LENGTHS = (5, 17, 2, 9, 30, 3, 12)
Batched = list[tuple[list[int], dict[str, Tensor]]]


class Recorder:
    """Not a metric of the registry: it keeps what it is given."""

    def __init__(self) -> None:
        self.seen: list[list[dict[str, Any]]] = []

    needs = ()

    def fit(self, task: Any) -> Recorder:
        return self

    def compute(self, records: Sequence[dict[str, Any]]) -> dict[str, float]:
        self.seen.append(list(records))
        return {}


@pytest.fixture
def world() -> Iterator[World]:
    with joined() as world:
        yield world


def engine_of(model: Any) -> Engine:
    optim = Optimizer.model_validate("adamw")
    config = fill(read_config("zero2"), Plan(4, 4, 1, "fp32", optim, Path("/nowhere")))
    return open_engine(model, optim, config, {}, {})


def features() -> list[dict[str, Any]]:
    numbers = torch.Generator().manual_seed(0)
    ids = [torch.randint(4, 300, (length,), generator=numbers).tolist() for length in LENGTHS]
    return [{"input_ids": row, "labels": [-100, *row[1:]]} for row in ids]


@pytest.fixture
def split(tmp_path: Path) -> Split:
    """The rows are not needed to judge these."""
    rows = [{"text": str(number)} for number in range(len(LENGTHS))]
    return Split(write(tmp_path / "store", features()), rows, tokenizer())


def scores(engine: Engine, batches: Batched, split: Split, world: World) -> dict[str, float]:
    return score(engine.deepspeed, batches, split, TASK, METRICS, world).numbers


def batches(*numbers: list[int]) -> Batched:
    """These rows in these batches; a batch of none is blank, as on a process that has no rows left."""
    rows, words = features(), tokenizer()

    def batch(chosen: list[int]) -> dict[str, Tensor]:
        if not chosen:
            return TASK.blank(TASK.collate(rows[:1], words))
        return TASK.collate([rows[number] for number in chosen], words)

    return [(chosen, batch(chosen)) for chosen in numbers]


def test_the_numbers_are_those_of_single_rows_whatever_the_batches(world: World, split: Split) -> None:
    model = tiny("llama")
    losses, hits, targets = [], 0, 0
    with torch.no_grad():
        for row in features():
            ids = torch.tensor([row["input_ids"]])
            output = model(input_ids=ids, labels=ids)
            losses.append(float(output.loss) * (len(row["input_ids"]) - 1))
            hits += int((output.logits[0, :-1].argmax(-1) == ids[0, 1:]).sum())
            targets += len(row["input_ids"]) - 1
    engine = engine_of(model)
    one_by_one = scores(engine, batches(*([row] for row in range(7))), split, world)
    mixed = scores(engine, batches([4, 1, 6], [3, 0], [], [5, 2]), split, world)
    engine.close()
    assert one_by_one["loss"] == pytest.approx(sum(losses) / targets, rel=1e-5)
    assert one_by_one["token_accuracy"] == hits / targets
    assert one_by_one["perplexity"] == pytest.approx(2.718281828459045 ** one_by_one["loss"])
    assert mixed == pytest.approx(one_by_one, rel=1e-6)


def test_metrics_see_every_row_once_and_in_the_splits_order(world: World, split: Split) -> None:
    recorder: Any = Recorder()
    engine = engine_of(tiny("llama"))
    score(engine.deepspeed, batches([6, 2], [], [0, 4, 5], [3, 1]), split, TASK, [recorder], world)
    engine.close()
    assert [record["targets"] for record in recorder.seen[0]] == [length - 1 for length in LENGTHS]


class Summing(CausalLM, name=None):  # type: ignore[call-arg]
    """A row's loss is that of all its windows."""

    def judge(self, row: Any, records: Sequence[dict[str, Any]], processor: Any) -> dict[str, Any]:
        return {name: sum(record[name] for record in records) for name in ("loss", "targets", "correct")} | row


def test_the_windows_of_a_row_are_judged_together(world: World, tmp_path: Path) -> None:
    """Windows 0-2 are row 0's, 3 and 4 row 2's; the window left out (5) is not asked for, nor is its row."""
    with Writer(tmp_path / "windows") as writer:
        for window, row in enumerate((0, 0, 0, 2, 2, 4)):
            writer.add(row, features()[window])
        store = writer.close()
    rows = [{"name": name} for name in "abcde"]
    engine = engine_of(tiny("llama"))
    split, dealt = Split(store, rows, tokenizer()), batches([4, 0], [], [3, 1, 2])
    found = score(engine.deepspeed, dealt, split, Summing(), METRICS, world)
    engine.close()
    assert [(record["name"], record["targets"]) for record in found.records] == [("a", 21), ("c", 37)]
    assert found.numbers["loss"] == pytest.approx(sum(record["loss"] for record in found.records) / 58)


def test_scoring_leaves_no_trace(world: World, split: Split) -> None:
    """Dropout is off while it scores and on afterwards; weights, gradients and random numbers are as before."""
    engine = engine_of(tiny("llama", attention_dropout=0.5))
    before = capture(engine).weights
    numbers = torch.get_rng_state()
    first, second = (scores(engine, batches([0, 1], [2, 3]), split, world) for _ in range(2))
    assert first == second
    assert torch.equal(torch.get_rng_state(), numbers)
    assert engine.model.training and engine.deepspeed.training
    assert all(weight.grad is None for weight in engine.trained().values())
    assert all(torch.equal(value, before[name]) for name, value in capture(engine).weights.items())
    engine.close()


def test_nothing_scored_is_not_a_good_score() -> None:
    assert all(number != number for number in compute([], METRICS).values())
