"""What became of rows, for every kind of answer that a task gives."""

from __future__ import annotations

import math
from typing import Any

import pytest

from peftkit.evaluation.changes import (
    Change,
    answer_of,
    asked_of,
    counts,
    is_right,
    kind_of,
    losses_of,
    truth_of,
    word_diff,
)
from peftkit.tasks import Task

LABEL = {"label": "a", "loss": 1.0, "targets": 1}
TAGS = {"tags": ["O", "B-X"], "loss": 2.0, "targets": 2}
QA = {"answers": ["the Seine", "Seine"]}
TEXT = {"reference": "A river."}


@pytest.mark.parametrize(
    ("before", "after", "kind"),
    [
        ({**LABEL, "prediction": "b"}, {**LABEL, "prediction": "a"}, "fixed"),
        ({**LABEL, "prediction": "a"}, {**LABEL, "prediction": "c"}, "broken"),
        ({**LABEL, "prediction": "b"}, {**LABEL, "prediction": "c"}, "otherwise wrong"),
        ({**LABEL, "prediction": "b"}, {**LABEL, "prediction": "b", "loss": 9.0}, "same"),
        ({"label": ["a", "b"], "prediction": ["b", "a"]}, {"label": ["a", "b"], "prediction": []}, "broken"),
        ({"label": [], "prediction": ["a"]}, {"label": [], "prediction": []}, "fixed"),
        ({"label": 2.0, "prediction": 1.0}, {"label": 2.0, "prediction": 2.5}, "nearer"),
        ({"label": [0.0, 1.0], "prediction": [0.0, 1.0]}, {"label": [0.0, 1.0], "prediction": [0.1, 1.0]}, "farther"),
        ({**TAGS, "predicted_tags": ["O", "O"]}, {**TAGS, "predicted_tags": ["O", "B-X"]}, "fixed"),
        ({**QA, "answer": "Paris"}, {**QA, "answer": "Seine."}, "fixed"),
        ({"answers": [], "answer": ""}, {"answers": [], "answer": "no"}, "broken"),
        ({**TEXT, "generated": "a river"}, {**TEXT, "generated": "a sea"}, "broken"),
        ({"margin": -1.0}, {"margin": 0.5}, "fixed"),
        ({"loss": 4.0, "targets": 2}, {"loss": 3.0, "targets": 2}, "nearer"),
        ({"loss": 4.0, "targets": 2}, {"loss": 4.0, "targets": 2}, "same"),
        ({"loss": math.nan, "targets": 2}, {"loss": 4.0, "targets": 2}, "same"),
        ({"label": None, "prediction": "a", "loss": 0.0, "targets": 0}, {"label": None, "prediction": "b"}, "same"),
    ],
)
def test_each_kind_of_answer(before: dict[str, Any], after: dict[str, Any], kind: str) -> None:
    assert kind_of(before, after) == kind


def test_answers_and_truths_in_words() -> None:
    assert answer_of({**LABEL, "prediction": "b"}) == "b"
    assert answer_of({"label": ["a"], "prediction": []}) == "(none)"
    assert answer_of({"label": 1.0, "prediction": 0.123456789}) == "0.123457"
    assert truth_of({**QA, "answer": "x"}) == "the Seine\nSeine"
    assert truth_of({"tags": ["O", "B-X"], "predicted_tags": ["O", "O"]}) == "O B-X"
    assert (answer_of({"margin": -1.0}), truth_of({"margin": -1.0})) == ("rejected", "chosen")
    assert (answer_of({"loss": 1.0}), truth_of({"loss": 1.0})) == ("", "")


def test_without_a_truth_nothing_is_right() -> None:
    assert is_right({"label": None, "prediction": "a"}) is None
    assert is_right({"reference": None, "generated": "a"}) is None


def test_losses_of_other_targets_are_not_compared() -> None:
    assert losses_of({"loss": 4.0, "targets": 2}, {"loss": 3.0, "targets": 2}) == (2.0, 1.5)
    assert losses_of({"loss": 4.0, "targets": 2}, {"loss": 3.0, "targets": 3}) is None


def test_what_is_asked_leaves_out_what_is_learnt() -> None:
    chat = Task.model_validate("chat")
    turns = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}]
    more = [{"from": "human", "value": "three"}, {"from": "gpt", "value": "four"}]
    assert asked_of({"messages": [*turns, *more]}, chat) == "user: one\nassistant: two\nhuman: three"
    assert asked_of({"prompt": "why?", "response": "because", "system": None}, chat) == "why?"
    tags = Task.model_validate("token_classification")
    assert asked_of({"tokens": ["in", "Paris"], "tags": ["O", "B-X"]}, tags) == "in Paris"


@pytest.mark.parametrize(
    ("before", "after"),
    [("a b c", "a x c"), ("", "new words"), ("gone", ""), ("é漢 same", "é漢 same"), ("a " * 3000, "b")],
)
def test_a_word_diff_holds_both_texts(before: str, after: str) -> None:
    pieces = list(word_diff(before, after))
    assert "".join(text for what, text in pieces if what != "after") == before
    assert "".join(text for what, text in pieces if what != "before") == after


def test_kinds_are_counted_in_their_order() -> None:
    kinds = ("same", "broken", "fixed", "same")
    rows = [Change(at, "", kind, "", "", "", "") for at, kind in enumerate(kinds)]
    assert list(counts(rows).items()) == [("fixed", 1), ("broken", 1), ("same", 2)]
