"""A run goes on in another world: other processes, another ZeRO stage, other micro-batches; nothing of what is learnt changes.

Each leg is stopped by a signal and resumed otherwise. Every row of every step is recorded where it is put into a batch.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from peftkit.data import batches
from peftkit.engine import loop
from tests.flows.hooks import at_a_step
from tests.forked import Server
from tests.tiny import save_tiny

pytestmark = pytest.mark.launch

ROWS, TOTAL, STEPS = 30, 8, 13
LEGS = [(2, "zero2", 2, 2), (1, "zero3", 4, 5), (2, "zero1", 1, 8), (1, "zero0", 8, 10), (2, "zero3", 3, None)]
"""Processes, stage, rows in a micro-batch, the step at which it is asked to stop. Four steps are an epoch."""


def record_rows() -> None:
    """In the training's own process: the rows of every batch that is learnt, as lines of its step and their numbers.

    Batches of steps that are not taken may be made as well, ahead of time.
    """
    make, learn, desk = batches._batch, loop.accumulate, Path(os.environ["TEST_DESK"])
    rows_of: dict[int, tuple[int, list[int]]] = {}

    def then(store: Any, task: Any, processor: Any, rows: Sequence[int], spare: int, seed: str) -> Any:
        batch = make(store, task, processor, rows, spare, seed)
        if seed != "evaluation":
            rows_of[id(batch)] = int(seed.split()[1]) + 1, list(rows)
        return batch

    def learnt(engine: Any, micro_batches: Sequence[Any], *rest: Any) -> Any:
        with (desk / f"{os.getpid()}.jsonl").open("a") as file:
            file.writelines(json.dumps(rows_of.pop(id(batch))) + "\n" for batch in micro_batches)
        return learn(engine, micro_batches, *rest)

    batches._batch, loop.accumulate = then, learnt
    if "TEST_STEP" in os.environ:
        at_a_step()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("worlds")
    save_tiny(folder / "llama", "llama")
    rows = [{"prompt": f"say {row}", "response": "word " * (1 + row % 7)} for row in range(ROWS)]
    (folder / "chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.mark.parametrize("strategy", ["full", "lora"])
def test_a_journey_through_worlds_learns_what_one_world_learns(
    strategy: str, data: Path, tmp_path: Path, server: Server
) -> None:
    words = ["train", "--model", f"{data}/llama", "--data", f"{data}/chat.jsonl", "--data.holdout", "0", "--resume"]
    words += ["--strategy", strategy, "--batch.total", f"{TOTAL}", "--steps", f"{STEPS}", "--checkpoint.every", "3"]
    for name, legs in (("one", [(2, "zero2", 2, None)]), ("many", LEGS)):
        (tmp_path / f"{name}-desk").mkdir()
        for processes, zero, micro, stop in legs:
            leg = [*words, "--out", f"{tmp_path}/{name}", "--deepspeed", zero, "--batch.micro", f"{micro}"]
            env = {"TEST_DESK": f"{tmp_path}/{name}-desk", "TEST_PROCESS": "0", "TEST_DO": "15"}
            env |= {"TEST_STEP": f"{stop}"} if stop else {}
            hook = {"PEFTKIT_TEST_HOOK": "tests.flows.test_other_world:record_rows"}
            world = server.start(leg, tmp_path / "said", processes, **hook, **env)
            assert {one.wait() for one in world} == {75 if stop else 0}, world[0].said()
    one, many = rows_learnt(tmp_path / "one-desk"), rows_learnt(tmp_path / "many-desk")
    assert many == one, "no row is skipped, none is learnt twice"
    for epoch in range(STEPS // 4):
        assert sum((many[4 * epoch + step] for step in (1, 2, 3, 4)), Counter()) == Counter(range(ROWS))
    assert told(tmp_path / "many") == pytest.approx(told(tmp_path / "one"), abs=2e-6)
    expected, found = weights(tmp_path / "one"), weights(tmp_path / "many")
    assert found.keys() == expected.keys()
    assert max(float((found[name] - expected[name]).abs().max()) for name in expected) < 1e-6


@pytest.mark.parametrize(("strategy", "zero"), [("full", "zero2"), ("lora", "zero3")])
def test_two_processes_that_share_rows_learn_what_one_learns(
    strategy: str, zero: str, data: Path, tmp_path: Path, server: Server
) -> None:
    words = ["train", "--model", f"{data}/llama", "--data", f"{data}/chat.jsonl", "--data.holdout", "0.2"]
    words += ["--strategy", strategy, "--batch.total", f"{TOTAL}", "--steps", f"{STEPS}", "--batch.micro", "3"]
    for processes in (1, 2):
        leg = [
            *words,
            "--out",
            f"{tmp_path}/{processes}",
            "--deepspeed",
            zero,
            "--batch.sequence_parallel",
            f"{processes}",
        ]
        world = server.start(leg, tmp_path / f"said-{processes}", processes)
        assert {one.wait() for one in world} == {0}, world[0].said()
    assert numbers(tmp_path / "2") == pytest.approx(numbers(tmp_path / "1"), abs=2e-6)
    expected, found = weights(tmp_path / "1"), weights(tmp_path / "2")
    assert max(float((found[name] - expected[name]).abs().max()) for name in expected) < 1e-6


def test_rows_that_cannot_be_shared_are_refused_before_anything_is_loaded(
    data: Path, tmp_path: Path, server: Server
) -> None:
    words = ["train", "--model", f"{data}/llama", "--data", f"{data}/chat.jsonl", "--out", f"{tmp_path}/run"]
    (alone,) = server.start([*words, "--batch.sequence_parallel", "2"], tmp_path / "said", 1)
    assert alone.wait() == 2
    assert "--batch.sequence_parallel 2: 1 process cannot be put together in groups" in alone.said()


def numbers(out: Path) -> list[float]:
    """The loss and the gradient's norm of every step, and the scores, in order."""
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [row[name] for row in rows for name in ("loss", "grad_norm") if name in row]


def rows_learnt(desk: Path) -> dict[int, Counter[int]]:
    """How often each row was put into a batch of each step, by all processes."""
    found: dict[int, Counter[int]] = {}
    for file in desk.glob("*.jsonl"):
        for step, rows in map(json.loads, file.read_text().splitlines()):
            found.setdefault(step, Counter()).update(rows)
    return found


def told(out: Path) -> list[float]:
    """The loss, the gradient's norm and the rate of every step, in order."""
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    return [row[name] for row in rows for name in ("loss", "grad_norm", "lr")]


def weights(out: Path) -> dict[str, torch.Tensor]:
    newest = out / f"checkpoints/step-{STEPS:06d}"
    return {key: value for part in newest.glob("trained-*") for key, value in load_file(part).items()}
