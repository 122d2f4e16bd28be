"""A setting that would do nothing is named before anything is read."""

from __future__ import annotations

from typing import Any

import pytest

from peftkit.config.run import Run

CLASSES = "sequence_classification"
NO_ROWS = {"train": "a.csv", "holdout": 0}


def problems(settings: dict[str, Any]) -> list[str]:
    return list(Run.model_validate({"model": "x", "task": CLASSES, "data": "a.csv", **settings}).problems())


@pytest.mark.parametrize(
    "settings",
    [
        {"eval": {"patience": 2, "bootstrap": 9, "by": "lang", "rows": 5}, "checkpoint": {"final": "best"}},
        {"data": NO_ROWS},
        {"data": NO_ROWS, "eval": {"anchor": "old.csv", "every": 5, "by": "lang", "metrics": ["accuracy"]}},
        {"data": {**NO_ROWS, "test": "b.csv"}, "eval": {"bootstrap": 9}},
        {"data": {**NO_ROWS, "validation": "b.csv", "augment": {"copies": 1, "synonym": 0}}},
        {"data": {**NO_ROWS, "folds": 3}, "task": {"name": CLASSES, "thresholds": "tune"}},
        {"task": "chat", "data": {"max_length": 64, "truncate": "left"}, "generate": {"num_beams": 2}},
        {"task": "question_answering", "data": {"train": "a.csv", "stride": 8, "max_length": 64}},
        {"task": "image_classification", "data": "images"},
        {"eval": {"metrics": ["f1", "accuracy"]}},
    ],
)
def test_what_does_something_is_let_through(settings):
    assert problems(settings) == []


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"data": NO_ROWS, "eval": {"patience": 2}}, "--eval.patience is of scores, and there are no validation rows"),
        ({"data": NO_ROWS, "eval": {"bootstrap": 9}}, "--eval.bootstrap is of scores"),
        ({"data": NO_ROWS, "eval": {"rows": 9, "anchor": "b.csv"}}, "--eval.rows is of scores"),
        ({"data": NO_ROWS, "checkpoint": {"final": "best"}}, "--checkpoint.final best is the best by its scores"),
        (
            {"data": NO_ROWS, "schedule": "reduce_on_plateau", "eval": {"anchor": "b.csv", "every": 2}},
            "--schedule reduce_on_plateau looks at validation rows",
        ),
        ({"eval": {"metrics": ["f1", {"name": "f1", "average": "micro"}]}}, "2 metrics whose numbers are called f1"),
        ({"data": {"train": "a.csv", "stride": 8}}, "--data.stride 8 says nothing to --task sequence_classification"),
        (
            {"task": "token_classification", "data": {"train": "a.csv", "truncate": "left"}},
            "--data.truncate left says nothing to --task token_classification",
        ),
        (
            {"task": "image_classification", "data": {"train": "a", "max_length": 9}},
            "--data.max_length 9 says nothing to --task image_classification",
        ),
        ({"generate": {"num_beams": 2}}, "--generate.num_beams says how text is written"),
        ({"task": "causal_lm", "generate": {"max_new_tokens": 2}}, "--generate.max_new_tokens"),
        ({"data": {"train": "a.csv", "augment": {"swap": 0.5}}}, "add --data.augment.copies 1"),
        ({"data": {"train": "a.csv", "augment": {"copies": 1, "synonym": 0.5}}}, "--data.augment.synonyms FILE"),
        (
            {"data": {"train": "a.csv", "augment": {"copies": 1, "swap": 0, "deletion": 0}}},
            "no copy differs from its row",
        ),
        ({"data": {"train": "a.csv", "validation": "b.csv", "holdout": 0.2}}, "leave out --data.holdout 0.2"),
        ({"data": {"train": "a.csv", "folds": 3, "holdout": 0.2}}, "leave out --data.holdout 0.2"),
        ({"task": "chat", "data": {"holdout": 0.2}}, "--data.holdout 0.2 needs --data.train"),
        (
            {"task": {"name": "question_answering", "no_answer_threshold": "tune"}, "data": NO_ROWS},
            "--task.no_answer_threshold tune sets them by validation rows",
        ),
        (
            {"task": {"name": CLASSES, "thresholds": "tune"}, "checkpoint": {"final": "average", "keep": 3}},
            "the mean of the checkpoints is exported, which none has scored",
        ),
    ],
)
def test_what_would_do_nothing_is_one_sentence(settings, expected):
    (problem,) = problems(settings)
    assert expected in problem
