"""Is this the name of a person or of a company? MiniLM by LoRA against the majority, and TF-IDF with logistic regression."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from sklearn.dummy import DummyClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

import peftkit
from peftkit.cli.main import main
from tests.real.conftest import Train
from tests.real.scores import before_and_after
from tests.real.texts import Row, names, written

pytestmark = pytest.mark.real
TRAIN, VALIDATION = 320, 300


@pytest.fixture(scope="module")
def rows() -> tuple[list[Row], list[Row]]:
    found = names()
    return found[:TRAIN], found[TRAIN : TRAIN + VALIDATION]


@pytest.fixture(scope="module")
def folder(rows: tuple[list[Row], list[Row]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("names")
    for name, split in zip(("train", "validation"), rows, strict=True):
        written(folder / f"{name}.jsonl", split)
    return folder


@pytest.fixture(scope="module")
def run(train: Train, minilm: str, folder: Path) -> Path:
    trained = train(
        model=minilm,
        task="sequence_classification",
        strategy={"name": "lora", "rank": 8},
        data={"train": f"{folder}/train.jsonl", "validation": f"{folder}/validation.jsonl", "max_length": 32},
        batch={"total": 8, "micro": 8},
        epochs=1,
        optim={"name": "adamw", "lr": 2e-3},
        eval={"batch": 50},
    )
    peftkit.export(trained)
    return trained


def accuracy(model: Any, train: list[Row], validation: list[Row]) -> float:
    """Of a baseline."""
    texts, labels = ([[row[name] for row in rows] for rows in (train, validation)] for name in ("text", "label"))
    return float(model.fit(texts[0], labels[0]).score(texts[1], labels[1]))


def test_it_beats_the_baselines(run: Path, rows: tuple[list[Row], list[Row]]) -> None:
    before, after = before_and_after(run, "accuracy")
    majority = accuracy(DummyClassifier(), *rows)
    words = accuracy(make_pipeline(TfidfVectorizer(), LogisticRegression()), *rows)
    letters = TfidfVectorizer(analyzer="char_wb", ngram_range=(1, 4))
    pieces = accuracy(make_pipeline(letters, LogisticRegression()), *rows)
    print(
        f"accuracy {after:.3f}; before {before:.3f}, majority {majority:.3f}, words {words:.3f}, letters {pieces:.3f}"
    )
    assert before < majority < words < pieces < after - 0.1


def test_eval_says_of_the_export_what_was_said_of_the_run(run: Path, folder: Path, tmp_path: Path) -> None:
    found = tmp_path / "numbers.json"
    assert main(["eval", f"{run}/export/merged", f"{folder}/validation.jsonl", "--out", str(found)]) == 0
    assert json.loads(found.read_text())["accuracy"] == before_and_after(run, "accuracy")[1]


def test_predict_keeps_the_rows_and_adds_their_labels(run: Path, folder: Path, rows: Any, tmp_path: Path) -> None:
    found = tmp_path / "answers.jsonl"
    assert main(["predict", f"{run}/export/merged", f"{folder}/validation.jsonl", "--out", str(found)]) == 0
    answers = [json.loads(line) for line in found.read_text().splitlines()]
    assert [{name: row[name] for name in ("text", "label")} for row in answers] == rows[1]
    right = [row["prediction"] == row["label"] for row in answers]
    assert sum(right) / len(right) == before_and_after(run, "accuracy")[1]
