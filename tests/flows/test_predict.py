"""`peftkit eval` and `peftkit predict` on what a training left behind: the run, a checkpoint, the adapter, the merged model."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from peftkit.cli.main import main
from peftkit.config.run import Run
from peftkit.errors import ConfigError
from peftkit.flows import evaluate, predict
from peftkit.flows.export import export
from peftkit.flows.train import train
from tests.tiny import save_tiny

ROWS = [
    {"number": row, "text": f"{'good' if row % 3 else 'bad'} film " + "and so on " * (row % 5), "label": f"L{row % 3}"}
    for row in range(24)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three steps, its exports, and rows with and without labels."""
    place = tmp_path_factory.mktemp("predict")
    save_tiny(place / "bert", "bert")
    write(place / "rows.jsonl", ROWS)
    write(place / "plain.jsonl", [{name: row[name] for name in ("number", "text")} for row in ROWS])
    run = {
        "model": str(place / "bert"),
        "task": "sequence_classification",
        "data": {"train": str(place / "rows.jsonl"), "validation": str(place / "rows.jsonl")},
        "steps": 3,
        "optim": {"name": "adamw", "lr": 1e-2},
        "eval": {"metrics": ["accuracy", "f1", "log_loss"], "by": "number", "bootstrap": 20},
        "out": str(place / "run"),
    }
    train(Run.model_validate(run))
    export(place / "run", to="merged")
    return place


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def last_validation(folder: Path) -> dict[str, float]:
    return [row for row in lines(folder / "run" / "metrics.jsonl") if row.get("split") == "validation"][-1]


@pytest.mark.parametrize("place", ["run", "run/checkpoints/step-000003", "run/export/adapter", "run/export/merged"])
def test_each_place_gives_the_numbers_of_training(place: str, folder: Path) -> None:
    asked = evaluate.Asked(str(folder / "rows.jsonl"), metrics=("accuracy", "f1", "log_loss"), by="number")
    found = evaluate.evaluate(folder / place, asked)
    expected = last_validation(folder)
    assert len(found) >= 4 + 24 * 4
    for name, number in found.items():
        assert number == pytest.approx(expected[name], rel=1e-4, abs=1e-6, nan_ok=True), name


def test_intervals_stand_beside_the_last_numbers(folder: Path) -> None:
    numbers = last_validation(folder)
    assert numbers["accuracy/low"] <= numbers["accuracy"] <= numbers["accuracy/high"]
    asked = evaluate.Asked(str(folder / "rows.jsonl"), metrics=("accuracy",), bootstrap=50)
    found = evaluate.evaluate(folder / "run", asked)
    assert found["accuracy/low"] <= found["accuracy"] <= found["accuracy/high"]


@pytest.mark.parametrize("place", ["run", "run/export/adapter", "run/export/merged"])
def test_answers_keep_order_and_columns_and_need_no_labels(place: str, folder: Path, tmp_path: Path) -> None:
    for rows in ("rows", "plain"):
        out = tmp_path / f"{rows}.jsonl"
        predict.predict(folder / place, predict.Asked(str(folder / f"{rows}.jsonl"), out))
    answers, blind = lines(tmp_path / "rows.jsonl"), lines(tmp_path / "plain.jsonl")
    assert [{name: row[name] for name in ("number", "text", "label")} for row in answers] == ROWS
    assert [row["prediction"] for row in answers] == [row["prediction"] for row in blind]
    right = sum(row["prediction"] == row["label"] for row in answers) / len(answers)
    assert right == last_validation(folder)["accuracy"]
    assert all(max(row["probabilities"], key=row["probabilities"].get) == row["prediction"] for row in answers)


def test_an_interrupted_prediction_goes_on(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predict, "CHUNK", 5)
    whole = predict.Asked(str(folder / "plain.jsonl"), tmp_path / "whole.jsonl")
    predict.predict(folder / "run", whole)
    cut = predict.Asked(str(folder / "plain.jsonl"), tmp_path / "cut.jsonl")
    answers = predict.Answers.add

    def dies(self: predict.Answers, rows: Any) -> None:
        answers(self, rows)
        if rows[-1]["number"] >= 9:
            with self.partial.open("a") as file:
                file.write('{"number": 10, "te')
            raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(predict.Answers, "add", dies)
        predict.predict(folder / "run", cut)
    assert not cut.out.exists()
    with pytest.raises(ConfigError, match="another model or other rows"):
        predict.predict(folder / "run/export/merged", cut)
    predict.predict(folder / "run", cut)
    assert (tmp_path / "cut.jsonl").read_text() == (tmp_path / "whole.jsonl").read_text()
    assert not list(tmp_path.glob("*.partial"))


def test_a_row_that_cannot_be_read_says_why_in_its_place(folder: Path, tmp_path: Path) -> None:
    write(tmp_path / "rows.jsonl", [{"text": "good film"}, {"text": ""}, {"text": "bad film"}])
    predict.predict(folder / "run", predict.Asked(str(tmp_path / "rows.jsonl"), tmp_path / "out.csv"))
    with (tmp_path / "out.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    assert [row["text"] for row in found] == ["good film", "", "bad film"]
    assert [bool(row["prediction"]) for row in found] == [True, False, True]
    assert found[1]["error"] == "no 'text'"
    assert set(json.loads(found[0]["probabilities"])) == {"L0", "L1", "L2"}


def test_the_commands(folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rows, run = str(folder / "rows.jsonl"), str(folder / "run")
    numbers = tmp_path / "numbers.json"
    assert main(["eval", run, rows, "--metrics", "accuracy", "--bootstrap", "20", "--out", str(numbers)]) == 0
    assert json.loads(numbers.read_text())["accuracy"] == last_validation(folder)["accuracy"]
    assert main(["predict", run, rows, "--out", str(tmp_path / "a.tsv"), "--columns", "text=text"]) == 0
    assert "24 rows written" in capfd.readouterr().out
    write(tmp_path / "strange.jsonl", [{"words": "good film"}])
    for words, said in (
        (
            ["predict", run, str(tmp_path / "strange.jsonl"), "--out", str(tmp_path / "c.jsonl")],
            "reads `text`; it has: words",
        ),
        (["predict", run, rows, "--out", str(tmp_path / "a.tsv")], "exists already"),
        (["predict", run, rows, "--out", str(tmp_path / "a.xlsx")], "a file that ends in"),
        (["predict", str(folder), rows, "--out", str(tmp_path / "b.jsonl")], "neither a run's folder"),
        (["eval", run, rows, "--metrics", "acuracy"], "did you mean"),
        (["eval", run, str(folder / "rows.jsnl")], "no file"),
        (["eval", run, rows, "--by", "langage"], "no column 'langage'"),
        (["eval", run, rows, "--columns", "text"], "OWN=FILE"),
        (["eval", run, rows, "--data.columns", "{text: txt}"], "no column 'txt'"),
        (["eval", run, rows, "--batch", "0"], "at least 1"),
    ):
        assert main(words) == 2, words
        told = capfd.readouterr().err
        assert said in told
        assert "Traceback" not in told
