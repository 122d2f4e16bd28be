"""Columns by their usual names, by `--data.columns`, and what is said when they are not there."""

from __future__ import annotations

import pytest

from peftkit.data.columns import rename
from peftkit.data.sources import Table
from peftkit.errors import DataError
from peftkit.tasks import CausalLM, Chat, SequenceClassification


def table(*rows):
    return Table("rows.csv", list(rows), range(1, len(rows) + 1))


@pytest.mark.parametrize(
    ("task", "row", "expected"),
    [
        (CausalLM(), {"id": 1, "content": "a"}, {"text": "a"}),
        (CausalLM(), {"content": "b", "text": "a"}, {"text": "a"}),
        (Chat(), {"conversations": [1], "id": 3}, {"messages": [1]}),
        (
            Chat(),
            {"instruction": "a", "input": "b", "output": "c"},
            {"prompt": "a", "input": "b", "response": "c"},
        ),
        (
            SequenceClassification(),
            {"sentence1": "a", "sentence2": "b", "label": 1, "idx": 0},
            {"text": "a", "text_pair": "b", "label": 1},
        ),
    ],
)
def test_usual_names_are_found_and_other_columns_left_behind(task, row, expected):
    assert list(rename(table(row), task, {}).rows) == [expected]


def test_settings_go_before_names_and_no_column_is_taken_twice():
    row = {"text": "a", "label": "b", "stars": 5, "review": "c"}
    columns = {"text": "review", "label": "stars"}
    assert list(rename(table(row), SequenceClassification(), columns).rows) == [{"text": "c", "label": 5}]


def test_rows_may_lack_columns_that_others_have():
    rows = rename(table({"prompt": "a"}, {"prompt": "b", "response": "c"}), Chat(), {}).rows
    assert list(rows) == [{"prompt": "a"}, {"prompt": "b", "response": "c"}]


def test_an_unknown_column_suggests_the_nearest_and_lists_what_there_is():
    with pytest.raises(
        DataError,
        match=r"--data\.columns text: rows\.csv has no column 'reviw' \(did you mean 'review'\?\); it has: review, x",
    ):
        rename(table({"review": "a", "x": 1}), CausalLM(), {"text": "reviw"})


@pytest.mark.parametrize(
    ("task", "row", "other"),
    [
        (Chat(), {"text": "a"}, "--task causal_lm"),
        (CausalLM(), {"messages": []}, "--task chat"),
        (Chat(), {"sentence": "a", "label": 1}, "--task sequence_classification"),
    ],
)
def test_columns_of_another_task_name_it(task, row, other):
    with pytest.raises(
        DataError, match=f"rows.csv lacks a column for --task {task.name}.*these columns look like {other}"
    ):
        rename(table(row), task, {})


def test_columns_of_no_task_say_how_to_name_them():
    with pytest.raises(DataError, match=r"reads `text`; it has: a, b\. .*--data\.columns '\{text: NAME\}'$"):
        rename(table({"a": 1}, {"b": 1}), CausalLM(), {})
