"""A run meets rows that have no finite loss, and losses that jump: it names the rows, counts, gives up in time, and resumes so."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from peftkit.config.run import Run
from peftkit.data.batches import step_rows
from peftkit.engine.checkpoint import Progress
from peftkit.engine.loop import Step
from peftkit.engine.world import World
from peftkit.errors import NonFiniteError
from peftkit.flows.guard import note
from peftkit.flows.train import train
from tests.conftest import Together
from tests.tiny import save_tiny, tokenizer

ROWS, TOTAL = 24, 4
POISON = "~"
"""A sign whose embedding is no number: a row that has it has no loss."""


def poisoned(folder: Path) -> Path:
    save_tiny(folder, "llama")
    weights = load_file(folder / "model.safetensors")
    (number,) = tokenizer()(POISON, add_special_tokens=False)["input_ids"]
    weights["model.embed_tokens.weight"][number] = torch.nan
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def settings(world: World, folder: Path, spoilt: list[int], **more: Any) -> dict[str, Any]:
    """A run over rows of which those of the steps `spoilt` (1 is the first) are all poisoned; a blank line before each row."""
    if world.first:
        bad = {row for step in spoilt for row in step_rows(step - 1, ROWS, TOTAL, 42)}
        rows = [
            {"prompt": f"say {row}", "response": f"secret {POISON if row in bad else ''} {'word ' * (row % 5)}"}
            for row in range(ROWS)
        ]
        (folder / "run.jsonl").write_text("".join(f"\n{json.dumps(row)}\n" for row in rows))
        poisoned(folder / "llama")
    world.wait()
    base = {"model": str(folder / "llama"), "task": "chat", "eval": {"before": False}, "out": str(folder / "run")}
    data = {"train": str(folder / "run.jsonl"), "holdout": 0}
    return {**base, "data": data, "batch": {"total": TOTAL, "micro": 1}, "strategy": "head_only", **more}


def lines_of(step: int) -> list[str]:
    """The lines in which a step's rows stand: 2, 4, 6, ..."""
    return [str(2 * (row + 1)) for row in sorted(step_rows(step - 1, ROWS, TOTAL, 42))]


def rows_of(out: str | Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(out) / "metrics.jsonl").read_text().splitlines()]


def weights_of(out: str, step: int) -> dict[str, torch.Tensor]:
    parts = (Path(out) / "checkpoints" / f"step-{step:06}").glob("trained-*")
    return {name: value for part in parts for name, value in load_file(part).items()}


def a_step_is_skipped_and_told(world: World, folder: Path) -> None:
    """One step of bad rows: it moves nothing, its row says so, and the run ends well."""
    train(Run.model_validate(settings(world, folder, [3], checkpoint={"every": 1, "keep": 0})))
    if world.first:
        rows = rows_of(folder / "run")
        assert [row["step"] for row in rows if row.get("skipped")] == [3]
        assert [row["step"] for row in rows if row["loss"] is None] == [3]
        for name, before in weights_of(str(folder / "run"), 2).items():
            assert torch.equal(weights_of(str(folder / "run"), 3)[name], before), name
        moved = weights_of(str(folder / "run"), 4)
        assert any(not torch.equal(moved[name], before) for name, before in weights_of(str(folder / "run"), 3).items())
        progress = json.loads((folder / "run/checkpoints/step-000006/progress.json").read_text())
        assert (progress["skipped"], progress["nonfinite"], len(progress["losses"])) == (1, 0, 5)
    world.wait()


def three_in_a_row_end_it(world: World, folder: Path) -> None:
    """Also with an interruption between them; every process says the same, and which rows of its files it was."""
    told = settings(world, folder, [3, 4, 5], checkpoint={"every": 2})
    train(Run.model_validate({**told, "steps": 4}))
    world.wait()
    with pytest.raises(NonFiniteError) as caught:
        train(Run.model_validate({**told, "resume": True}))
    said = str(caught.value)
    assert said.startswith(
        "3 steps in a row had no finite loss or gradient, the last is step 5: its loss is not finite"
    )
    assert f"its rows: run.jsonl line {', '.join(lines_of(5))}\n" in said
    assert f"the last good checkpoint is {folder}/run/checkpoints/step-000004\n" in said
    assert "--optim.lr" in said and "--guard.nonfinite_limit" in said
    assert "secret" not in said
    assert caught.value.exit_code == 1 and caught.value.kind == "nonfinite"
    world.wait()
    train(Run.model_validate({**told, "resume": True, "guard": {"nonfinite_limit": 4}}))
    if world.first:
        assert [row["step"] for row in rows_of(folder / "run") if row.get("skipped")] == [3, 4, 5]
    world.wait()


def stop_ends_it_at_once(world: World, folder: Path) -> None:
    """Of the step's four rows one is bad: it alone is named, whichever process it is dealt to."""
    told = settings(world, folder, [], guard={"nonfinite": "stop"})
    row = step_rows(1, ROWS, TOTAL, 42)[world.processes]
    file = folder / "run.jsonl"
    if world.first:
        lines = file.read_text().splitlines()
        lines[2 * row + 1] = lines[2 * row + 1].replace("secret", f"secret {POISON}")
        file.write_text("\n".join(lines))
    world.wait()
    with pytest.raises(NonFiniteError, match="step 2: its loss is not finite") as caught:
        train(Run.model_validate(told))
    assert f"its rows: run.jsonl line {2 * row + 2}\nthere is no checkpoint yet\n" in str(caught.value)


def broken_weights_are_not_saved(world: World, folder: Path) -> None:
    """A rate that is no rate: the step before the save was finite, what it led to is not."""
    told = settings(world, folder, [], optim={"lr": 1e38, "name": "sgd", "clip": 0}, checkpoint={"every": 1}, epochs=9)
    with pytest.raises(NonFiniteError) as caught:
        train(Run.model_validate(told))
    assert "not finite" in str(caught.value) and "a lower --optim.lr" in str(caught.value)
    for saved in (folder / "run/checkpoints").glob("step-*"):
        assert all(
            bool(torch.isfinite(weight).all())
            for weight in weights_of(str(folder / "run"), int(saved.name[5:])).values()
        )
    world.wait()


CHECKS: dict[str, Any] = {
    "skip": a_step_is_skipped_and_told,
    "limit": three_in_a_row_end_it,
    "stop": stop_ends_it_at_once,
    "weights": broken_weights_are_not_saved,
}


@pytest.mark.launch
@pytest.mark.parametrize("check", CHECKS)
def test_on_two_processes(check: str, together: Together) -> None:
    assert not together.wrong(__name__, check)


def test_a_jump_is_flagged_and_so_it_is_after_a_resume(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """One label a thousand times too large among sixty rows of two: its step has a mark, and its line is named."""
    save_tiny(tmp_path / "bert", "bert", num_labels=1)
    (bad, _) = step_rows(39, 120, 2, 42)
    rows = [{"text": f"text {row % 7}", "label": 3000.5 if row == bad else (row % 7) / 7} for row in range(120)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {"name": "sequence_classification", "problem": "regression"}
    told = {
        "model": str(tmp_path / "bert"),
        "task": task,
        "data": {"train": str(tmp_path / "rows.jsonl"), "holdout": 0},
    }
    told |= {"batch": {"total": 2, "micro": 2}, "eval": {"before": False}, "strategy": "full", "optim": {"lr": 1e-3}}
    train(Run.model_validate({**told, "out": str(tmp_path / "whole"), "steps": 60}))
    out = capfd.readouterr().out
    flagged = [(row["step"], row["spike"]) for row in rows_of(tmp_path / "whole") if "spike" in row]
    assert [step for step, _ in flagged] == [40]
    assert "warning: step 40: the loss jumps to" in out and f"rows.jsonl line {bad + 1}" in out.replace(", ", " line ")
    train(Run.model_validate({**told, "out": str(tmp_path / "parts"), "steps": 36}))
    train(Run.model_validate({**told, "out": str(tmp_path / "parts"), "steps": 60, "resume": True}))
    resumed = [(row["step"], row["spike"]) for row in rows_of(tmp_path / "parts") if "spike" in row]
    assert [step for step, _ in resumed] == [40]


def test_a_step_that_is_skipped_says_nothing_of_what_is_usual() -> None:
    progress = Progress()
    step = partial(Step, lr=1.0, targets=1, seconds=1.0)
    for number in range(1, 31):
        note(progress, step(number, 1.0 + number % 3 / 10, 1.0), 10)
    before = list(progress.losses)
    assert note(progress, step(31, float("nan"), float("inf"), skipped=True), 10) is None
    assert note(progress, step(32, 2.0, float("inf")), 10) is None, "fp16 looking for its scale"
    assert progress.losses == before and (progress.nonfinite, progress.skipped) == (0, 1)
    assert note(progress, step(33, 9.0, 1.0), 10) is not None
