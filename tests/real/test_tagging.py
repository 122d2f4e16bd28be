"""Which word of an address is what? MiniLM, all of it trained, against each word's most frequent tag."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path

import pytest
from seqeval.metrics import f1_score

from tests.real.conftest import Train
from tests.real.scores import before_and_after
from tests.real.texts import Row, addresses, written

pytestmark = pytest.mark.real
TRAIN, VALIDATION = 960, 200


def most_frequent(train: list[Row], validation: list[Row]) -> list[list[str]]:
    """Each word's most frequent tag among the training rows; of a word that is not there, the most frequent of all."""
    seen: dict[str, Counter[str]] = defaultdict(Counter)
    for row in train:
        for word, tag in zip(row["tokens"], row["tags"], strict=True):
            seen[word.lower()][tag] += 1
    (usual, _), *_ = sum(seen.values(), Counter()).most_common(1)
    likeliest = {word: tags.most_common(1)[0][0] for word, tags in seen.items()}
    return [[likeliest.get(word.lower(), usual) for word in row["tokens"]] for row in validation]


def test_it_beats_the_most_frequent_tag(train: Train, minilm: str, tmp_path: Path) -> None:
    rows = addresses()
    learnt, asked = rows[:TRAIN], rows[TRAIN : TRAIN + VALIDATION]
    run = train(
        model=minilm,
        task={"name": "token_classification", "labels": sorted({tag for row in rows for tag in row["tags"]})},
        strategy="full",
        data={
            "train": written(tmp_path / "train.jsonl", learnt),
            "validation": written(tmp_path / "validation.jsonl", asked),
            "max_length": 64,
        },
        batch={"total": 16, "micro": 16},
        epochs=1,
        optim={"name": "adamw", "lr": 5e-4},
        eval={"batch": 50},
    )
    before, after = before_and_after(run, "entity_f1")
    simple = f1_score([row["tags"] for row in asked], most_frequent(learnt, asked))
    print(f"entity F1 {after:.3f}; before {before:.3f}, most frequent tag {simple:.3f}")
    assert before < simple < after - 0.15
