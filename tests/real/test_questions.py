"""Which city, state, street or zip code is it? MiniLM finds the words in the address, against the words' usual place."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from peftkit.metrics.answers import normal
from tests.real.conftest import Train
from tests.real.scores import before_and_after
from tests.real.texts import Row, questions, written

pytestmark = pytest.mark.real
TRAIN, VALIDATION = 960, 200


def usual_place(train: list[Row], validation: list[Row]) -> list[str]:
    """The words where the answer to this question most often stands, counted from the end of the address."""
    places: dict[str, Counter[tuple[int, int]]] = {}
    for row in train:
        words, answer = row["context"].split(), row["answers"]["text"][0].split()
        start = row["context"][: row["answers"]["answer_start"][0]].count(" ")
        places.setdefault(row["question"], Counter())[len(words) - start, len(answer)] += 1
    usual = {question: counts.most_common(1)[0][0] for question, counts in places.items()}
    return [at(row["context"].split(), *usual[row["question"]]) for row in validation]


def at(words: list[str], from_end: int, count: int) -> str:
    start = max(0, len(words) - from_end)
    return " ".join(words[start : start + count]).rstrip(",.")


def test_it_beats_the_usual_place(train: Train, minilm: str, tmp_path: Path) -> None:
    rows = questions()
    learnt, asked = rows[:TRAIN], rows[TRAIN : TRAIN + VALIDATION]
    run = train(
        model=minilm,
        task="question_answering",
        strategy="full",
        data={
            "train": written(tmp_path / "train.jsonl", learnt),
            "validation": written(tmp_path / "validation.jsonl", asked),
            "max_length": 64,
            "stride": 16,
        },
        batch={"total": 16, "micro": 16},
        epochs=1,
        optim={"name": "adamw", "lr": 5e-4},
        eval={"batch": 50},
    )
    before, after = before_and_after(run, "exact_match")
    pairs = zip(usual_place(learnt, asked), asked, strict=True)
    simple = sum(normal(said) == normal(row["answers"]["text"][0]) for said, row in pairs) / len(asked)
    print(f"exact match {after:.3f}; before {before:.3f}, usual place {simple:.3f}")
    assert before < simple < after - 0.1
