"""The equalities that users rely on: a step's gradient, and a split's score, do not depend on how the work is split.

Every cell of tests/matrix.py trains a tiny real model through the real flow and DeepSpeed. The oracle is plain torch:
one window at a time without padding, and a loss that is not peftkit's (tests/cases.py).

python -m tests.test_promises       runs all cells and writes tests/matrix.json anew
"""

from __future__ import annotations

import json
import tempfile
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from peftkit.config.run import Run
from peftkit.data.batches import step_rows
from peftkit.engine.optim import decays
from peftkit.engine.random_state import seed_all
from peftkit.engine.statistics import statistics
from peftkit.engine.world import World
from peftkit.errors import PeftkitError
from peftkit.flows.job import Job, make_job
from tests.cases import CASES
from tests.launch import torchrun
from tests.matrix import EQUAL, OUTCOMES, TOTAL, Cell, cells, folder_of, read_outcomes
from tests.tiny import save_tiny

pytestmark = pytest.mark.launch
TOKENS = (1, 60)
CHECKPOINTED = Cell("chat", "qwen", "lora", 1, 2, "zero2")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("promises"))


@pytest.fixture(scope="module")
def trained(data: Path) -> Path:
    return run_all(data)


def made(folder: Path) -> Path:
    """Models and rows of very different lengths (and, where a row has several, with very different numbers of targets)."""
    folder.mkdir(exist_ok=True)
    for case, what in CASES.items():
        for family in what.families:
            if not (folder / folder_of(case, family)).exists():
                save_tiny(folder / folder_of(case, family), family, **what.model)
        rows = what.rows(folder)
        (folder / f"{case.replace(' ', '_')}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def run_all(data: Path) -> Path:
    """The folder of results: every cell of a world in one launch."""
    for processes in (1, 2):
        listed = {cell.name: cell.settings(data) for cell in cells() if cell.processes == processes}
        if processes == 1:
            again = CHECKPOINTED.settings(data)
            listed["checkpointed"] = again | {"model": {"path": again["model"], "gradient_checkpointing": True}}
        for tokens in TOKENS:
            listed[f"tokens-{tokens}"] = CHECKPOINTED.settings(data) | {"batch": {"total": TOTAL, "tokens": tokens}}
        (data / f"results-{processes}").mkdir()
        (data / f"cases-{processes}.json").write_text(json.dumps(listed))
        worker = Path(__file__).with_name("steps_worker.py")
        done = torchrun(
            processes, worker, data / f"cases-{processes}.json", data / f"results-{processes}", timeout=1500
        )
        assert done.returncode == 0, done.stdout[-4000:]
    return data


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("cell", cells(), ids=lambda cell: f"{cell.name}-{cell.processes}")
def test_the_step_is_that_of_plain_torch_and_what_is_refused_is_known(cell: Cell, trained: Path) -> None:
    assert outcome(cell, trained) == read_outcomes()[key(cell)]


@pytest.mark.timeout(1800)
def test_activations_computed_again_change_no_step(trained: Path) -> None:
    expected = load_file(trained / "results-1" / f"{CHECKPOINTED.name}.safetensors")
    found = load_file(trained / "results-1" / "checkpointed.safetensors")
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=1e-6, atol=1e-6)


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("tokens", TOKENS)
def test_micro_batches_by_tokens_change_no_step(processes: int, tokens: int, trained: Path) -> None:
    expected = load_file(trained / "results-1" / f"{CHECKPOINTED.name}.safetensors")
    found = load_file(trained / f"results-{processes}" / f"tokens-{tokens}.safetensors")
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=1e-5, atol=1e-5)


def test_a_score_has_the_same_last_digit_in_any_world(data: Path, tmp_path: Path) -> None:
    """Untrained, so that the weights are the same to the last bit: on 1, 2 and 3 processes, 19 rows in batches of 4."""
    untouched = {"steps": 1, "optim": {"name": "sgd", "lr": 1e-30}, "eval": {"batch": 4}}
    cases = {case: Cell(case, CASES[case].families[0], "full", 1, 2, "zero0").settings(data) for case in CASES}
    for what in cases.values():
        what |= untouched
        what["data"]["validation"] = what["data"]["train"]
    (tmp_path / "cases.json").write_text(json.dumps(cases))
    found: dict[str, list[Any]] = {case: [] for case in CASES}
    for processes in (1, 2, 3):
        out = tmp_path / str(processes)
        out.mkdir()
        done = torchrun(processes, Path(__file__).with_name("steps_worker.py"), tmp_path / "cases.json", out)
        assert done.returncode == 0, done.stdout[-4000:]
        for case in CASES:
            found[case].append(json.loads((out / f"{case}.json").read_text())["scores"])
    for case, scores in found.items():
        assert scores[0] == scores[1] == scores[2], case
        assert len(scores[0]) >= 2


def key(cell: Cell) -> str:
    micro = "" if cell.micro == 2 else f" micro {cell.micro}"
    return f"{cell.case}, {cell.family}, {cell.strategy}, {cell.world}{micro}"


def outcome(cell: Cell, data: Path) -> str:
    """`equal`, or why the cell was refused (its first sentence); AssertionError for steps that are not plain torch's."""
    results = data / f"results-{cell.processes}"
    found = json.loads((results / f"{cell.name}.json").read_text())
    assert "failed" not in found, found["failed"]
    if "refused" in found:
        return "refused: " + found["refused"].replace(str(data), "")[:120]
    tolerance = CASES[cell.case].tolerance
    steps, expected = plain_torch(Cell(cell.case, cell.family, cell.strategy, 1, 1, "zero0"), data)
    for number in ("loss", "grad_norm", "targets", "lr"):
        got, wanted = [step[number] for step in found["steps"]], [step[number] for step in steps]
        assert got == pytest.approx(wanted, rel=tolerance), f"{cell} {number}: {got} instead of {wanted}"
    weights = load_file(results / f"{cell.name}.safetensors")
    assert weights.keys() == expected.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(weight, expected[name], rtol=tolerance, atol=tolerance, msg=f"{cell} {name}")
    return EQUAL


@cache
def plain_torch(cell: Cell, data: Path) -> tuple[list[dict[str, float]], dict[str, torch.Tensor]]:
    """The same training without DeepSpeed, padding, micro-batches or our losses."""
    job = make_job(Run.model_validate(cell.settings(data)), World(0, 1, 0))
    seed_all(job.run.seed)
    job.unfreeze(0)
    model = job.model
    join_reference(job)
    named = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    groups = [
        {
            "params": [weight for name, weight in named.items() if decays(name, weight) is decaying],
            "weight_decay": decay,
        }
        for decaying, decay in ((True, 0.1), (False, 0.0))
    ]
    optimizer = torch.optim.AdamW([group for group in groups if group["params"]], lr=1e-2, eps=1e-5)
    steps = []
    for step in range(job.steps):
        lr = 1e-2 * (1 - step / job.steps)
        for group in optimizer.param_groups:
            group["lr"] = lr
        windows = windows_of(job, step)
        shared = {"ahead": ahead(job, windows)} if job.run.task.looks_ahead else {}
        losses = [CASES[cell.case].oracle(model, window, shared) for window in windows]
        targets = sum(count for _, count in losses)
        loss = sum(loss for loss, _ in losses) / targets
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(named.values(), 0.5)
        optimizer.step()
        steps.append({"loss": float(loss.detach()), "grad_norm": float(norm), "targets": targets, "lr": lr})
    return steps, {name: weight.detach() for name, weight in {**named, **statistics(model)}.items()}


def windows_of(job: Job, step: int) -> list[dict[str, Any]]:
    """The step's windows as they are learnt, with what is drawn for each."""
    store, seed = job.prepared.train, job.run.seed
    return [
        job.run.task.vary(store[row], job.base.processor, Random(f"vary {seed} {step} {row}"))
        for row in step_rows(step, len(store), TOTAL, seed)
    ]


def join_reference(job: Job) -> None:
    store, task = job.prepared.train, job.run.task
    if task.reference:
        alone = [task.collate([store[row]], job.base.processor) for row in range(len(store))]
        with torch.no_grad():
            found = [task.reference_values(job.model(**task.inputs(batch)), batch) for batch in alone]
        store.join({name: torch.cat([values[name] for values in found]).numpy() for name in task.reference})


def ahead(job: Job, windows: list[dict[str, Any]]) -> float:
    task = job.run.task
    batches = [task.collate([window], job.base.processor) for window in windows]
    with torch.no_grad():
        parts = [task.ahead(job.model(**task.inputs(batch)), batch) for batch in batches]
    return float(sum(value for value, _ in parts)) / sum(count for _, count in parts)


def write_outcomes() -> None:
    """Run everything; what is neither equal nor refused in a sentence is said and not written."""
    with tempfile.TemporaryDirectory() as name:
        data = run_all(made(Path(name)))
        found = {}
        for cell in cells():
            try:
                found[key(cell)] = outcome(cell, data)
            except (AssertionError, PeftkitError, OSError) as problem:
                print(f"NOT EQUAL {key(cell)}: {str(problem)[:600]}")
    OUTCOMES.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write_outcomes()
