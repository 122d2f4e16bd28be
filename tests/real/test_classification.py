"""Is this the name of a person or of a company? MiniLM by LoRA against the majority, and against TF-IDF with logistic regression."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from sklearn.dummy import DummyClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

import peftkit
from peftkit.flows import evaluate, predict
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
def run(train: Train, minilm: str, rows: tuple[list[Row], list[Row]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("names")
    return train(
        model=minilm,
        task="sequence_classification",
        strategy={"name": "lora", "rank": 8},
        data={
            "train": written(folder / "train.jsonl", rows[0]),
            "validation": written(folder / "validation.jsonl", rows[1]),
            "max_length": 32,
        },
        batch={"total": 8, "micro": 8},
        epochs=1,
        optim={"name": "adamw", "lr": 2e-3},
        eval={"batch": 64, "every": 1000},
    )


def baseline(model: object, train: list[Row], validation: list[Row]) -> float:
    texts, labels = ([[row[name] for row in rows] for rows in (train, validation)] for name in ("text", "label"))
    return float(model.fit(texts[0], labels[0]).score(texts[1], labels[1]))


def test_it_beats_the_baselines(run: Path, rows: tuple[list[Row], list[Row]]) -> None:
    before, after = before_and_after(run, "accuracy")
    majority = baseline(DummyClassifier(), *rows)
    words = baseline(make_pipeline(TfidfVectorizer(), LogisticRegression()), *rows)
    letters = baseline(
        make_pipeline(TfidfVectorizer(analyzer="char_wb", ngram_range=(1, 4)), LogisticRegression()), *rows
    )
    print(f"accuracy {after:.3f}; before {before:.3f}, majority {majority:.3f}, words {words:.3f}, letters {letters:.3f}")
