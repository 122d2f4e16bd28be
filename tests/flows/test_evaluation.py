"""What a training scores between its steps: the old domain, a column's values apart, thresholds, texts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from peftkit.config.run import Run
from peftkit.evaluation.certificate import Certificate
from peftkit.exporters.manual import Manual
from peftkit.flows.evaluate import Asked, evaluate
from peftkit.flows.export import export
from peftkit.flows.train import train
from tests.tiny import save_tiny

LANGUAGES = ("de", "en")


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def evaluations(run: Path, split: str) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row.get("split") == split]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three labels that a text may have, two of them rare; scored by language and on an old domain."""
    folder = tmp_path_factory.mktemp("evaluation")
    save_tiny(folder / "bert", "bert")
    rows = [
        {
            "text": f"film {row} " + "dull " * (row % 3),
            "label": ["a", "b"] if row % 3 else ["c"],
            "lang": LANGUAGES[row % 2],
        }
        for row in range(30)
    ]
    old = [{"text": f"book {row}", "label": ["a"], "lang": "en"} for row in range(6)]
    settings = {
        "model": str(folder / "bert"),
        "task": {"name": "sequence_classification", "thresholds": "tune"},
        "strategy": "full",
        "data": {"train": write(folder / "rows.jsonl", rows), "validation": write(folder / "val.jsonl", rows[:12])},
        "steps": 4,
        "optim": {"name": "adamw", "lr": 1e-3},
        "eval": {"every": 2, "by": "lang", "anchor": write(folder / "old.jsonl", old)},
        "out": str(folder / "run"),
    }
    return train(Run.model_validate(settings))


@pytest.fixture(scope="module")
def merged(run: Path) -> Path:
    return export(run, to="merged")


def test_the_old_domain_is_scored_before_during_and_after(run: Path) -> None:
    assert [row["step"] for row in evaluations(run, "anchor")] == [0, 2, 4]
    assert all(row["loss"] > 0 for row in evaluations(run, "anchor"))


def test_a_column_scores_apart_what_makes_up_the_whole(run: Path) -> None:
    for row in evaluations(run, "validation"):
        parts = [row[f"lang={language}/loss"] for language in LANGUAGES]
        assert row["loss"] == pytest.approx(sum(parts) / 2)  # six rows each


def test_thresholds_are_those_of_the_checkpoint_and_go_into_the_export(run: Path, merged: Path) -> None:
    state = json.loads((run / "checkpoints" / "step-000004" / "progress.json").read_text())
    tuned = state["tuned"]["thresholds"]
    assert set(tuned) == {"a", "b", "c"}
    config = json.loads((merged / "config.json").read_text())
    assert config["thresholds"] == tuned
    assert config["problem_type"] == "multi_label_classification"
    assert config["id2label"] == {"0": "a", "1": "b", "2": "c"}
    assert Manual.read(merged).task.thresholds == tuned  # type: ignore[attr-defined]
    assert Certificate.read(merged).exporter == "merged"


def test_the_card_has_the_last_numbers_of_each_split(run: Path, merged: Path) -> None:
    card = (merged / "README.md").read_text()
    last = evaluations(run, "anchor")[-1]["loss"]
    assert f"| anchor loss | {last:.6g} |" in card
    assert "lang=" not in card.split("## Check")[0].split("## Evaluation")[1]


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The settings of a run that stopped early: a rate so high that the loss only rises after the second step."""
    folder = tmp_path_factory.mktemp("stopped")
    save_tiny(folder / "bert", "bert")
    rows = [{"text": f"film {row} " + "dull " * (row % 3), "label": "ab"[row % 2]} for row in range(16)]
    settings = {
        "model": str(folder / "bert"),
        "task": "sequence_classification",
        "strategy": "full",
        "data": {"train": write(folder / "rows.jsonl", rows), "test": write(folder / "test.jsonl", rows[:5])},
        "batch": 4,
        "steps": 30,
        "optim": {"name": "sgd", "lr": 50, "clip": 0},
        "schedule": "constant",
        "eval": {"every": 1, "patience": 2, "bootstrap": 20, "before": False},
        "checkpoint": {"final": "best"},
        "out": str(folder / "run"),
    }
    train(Run.model_validate(settings))
    return settings


def test_the_last_evaluation_of_a_run_that_stops_early_has_intervals(stopped: dict[str, Any]) -> None:
    found = ["loss/low" in row for row in evaluations(Path(stopped["out"]), "validation")]
    assert 3 <= len(found) < 30
    assert found == [False] * (len(found) - 1) + [True]


def test_a_run_that_is_over_is_not_trained_on(stopped: dict[str, Any]) -> None:
    """Resumed, a run that stopped early leaves the same rows and checkpoints."""
    out = Path(stopped["out"])
    before = (out / "metrics.jsonl").read_text(), sorted(path.name for path in (out / "checkpoints").iterdir())
    train(Run.model_validate({**stopped, "resume": True}))
    assert (out / "metrics.jsonl").read_text() == before[0]
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == before[1]


def test_the_test_and_the_card_are_of_the_weights_that_are_exported(stopped: dict[str, Any]) -> None:
    """Here the best checkpoint's, which is not the last."""
    out = Path(stopped["out"])
    (test,) = evaluations(out, "test")
    best = min(evaluations(out, "validation"), key=lambda row: row["loss"])
    assert test["step"] == best["step"] < evaluations(out, "validation")[-1]["step"]
    again = evaluate(out, Asked(stopped["data"]["test"]))
    assert test["loss"] == pytest.approx(again["loss"], rel=1e-6)
    card = (export(out, to="merged") / "README.md").read_text()
    assert f"| validation loss | {best['loss']:.6g} |" in card  # intervals are of the last validation alone
    assert f"| test loss | {test['loss']:.6g} (95 % interval {test['loss/low']:.4g} to" in card
    card = (export(out, to="merged", checkpoint="last") / "README.md").read_text()
    last = evaluations(out, "validation")[-1]
    assert (
        f"| validation loss | {last['loss']:.6g} (95 % interval {last['loss/low']:.4g} to" in card
        and "test loss" not in card
    )
