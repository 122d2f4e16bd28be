"""Settings of the rows that do not go together are named before anything is read."""

from __future__ import annotations

import pytest

from peftkit.config.run import Run

CLASSES = "sequence_classification"


def problems(task: str = CLASSES, scoring: dict | None = None, **data) -> list[str]:
    settings = data if "mixture" in data or data.pop("embedded", False) else {"train": "a.csv", **data}
    return list(Run.model_validate({"task": task, "data": settings, "eval": scoring or {}}).problems())


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"split": "stratified", "folds": 5, "fold": 4},
        {"split": "group", "split_by": "user", "test_holdout": 0.1},
        {"balance": "weighted", "augment": {"copies": 2}},
        {"mixture": ["a.csv", {"path": "b.csv", "weight": 2}], "temperature": 2},
        {"task": "causal_lm", "mixture": ["a.txt", {"path": "b.jsonl", "task": "chat", "columns": {"prompt": "q"}}]},
        {"task": "chat", "embedded": True},
    ],
)
def test_these_go_together(data):
    assert problems(**data) == []


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"folds": 3, "fold": 3}, "--data.fold 3: with --data.folds 3 there are 0 to 2"),
        ({"fold": 1}, "--data.fold 1 is one of --data.folds"),
        ({"folds": 3, "validation": "b.csv"}, "no fold is held out"),
        ({"folds": 3, "split": "time", "split_by": "day"}, "learnt from the future"),
        ({"split": "group"}, "--data.split group needs the column whose groups stay together: --data.split_by COLUMN"),
        ({"split": "time"}, "--data.split time needs the column that says when"),
        ({"task": "causal_lm", "split": "stratified"}, "--task causal_lm has no label"),
        ({"split_by": "user"}, "--data.split_by user says nothing to a random split"),
        ({"split": "stratified", "validation": "b.csv"}, "nothing is held out"),
        ({"test": "b.csv", "test_holdout": 0.1}, "leave out --data.test_holdout"),
        ({"holdout": 0.6, "test_holdout": 0.4}, "leave no row to learn from"),
        ({"task": "chat", "embedded": True, "folds": 3}, "the embedded rows have their own validation rows"),
        ({"task": "causal_lm", "balance": "weighted"}, "needs rows of one label each"),
        ({"balance": "weighted", "mixture": ["a.csv", "b.csv"]}, "both say how often a row is learnt"),
        ({"temperature": 2}, "weighs the sources of a --data.mixture"),
        ({"mixture": ["a.csv"], "train": "b.csv"}, "both say what is learnt"),
        ({"mixture": ["x/a.csv", "y/a.jsonl"]}, "has 2 sources named a"),
        ({"mixture": [{"path": "a.csv", "task": "chatt"}]}, "'chatt' (did you mean 'chat'?)"),
        ({"mixture": [{"path": "a.csv", "task": "chat"}]}, "does not learn as --task sequence_classification does"),
        ({"mixture": [{"path": "a.csv", "columns": {"words": "b"}}]}, "names the column 'words'"),
        ({"task": "seq2seq", "mixture": ["a.csv"], "scoring": {"by": "source"}}, "in the column source_name"),
        ({"task": "causal_lm", "augment": {"copies": 1}}, "--task causal_lm has no text whose words may change"),
        ({"augment": {"copies": 1, "synonyms": "/no/table"}}, "there is no such file"),
        ({"task": "question_answering", "stride": 99, "max_length": 99}, "--data.stride 99"),
    ],
)
def test_each_clash_is_one_sentence(data, expected):
    (problem,) = problems(**data)
    assert expected in problem
