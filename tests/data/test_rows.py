"""Rows on disk and views of rows: sequences that make a row when it is asked for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from peftkit.data.rows import Joined, Labelled, Picked, Renamed, RowFile, write_rows

values = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.lists(st.text())
rows_of_any_kind = st.lists(st.dictionaries(st.text(), values, max_size=4), max_size=9)
ROWS = [{"a": 1, "b": "x"}, {"a": 2}, {"b": "z"}]


@given(rows=rows_of_any_kind)
def test_what_was_written_is_read(rows, tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    write_rows(folder, rows)
    found = RowFile(folder)
    assert (list(found), len(found), found[1:]) == (rows, len(rows), rows[1:])


def test_values_that_json_lacks_become_text_or_lists(tmp_path):
    assert write_rows(tmp_path, [{"a": np.arange(2), "b": np.float32(0.5), "c": {1}}])[0] == {
        "a": [0, 1],
        "b": 0.5,
        "c": "{1}",
    }


def test_a_text_with_half_a_character_comes_back(tmp_path):
    assert write_rows(tmp_path, [{"a": "x\ud83dy"}])[0] == {"a": "x\ud83dy"}


@pytest.mark.parametrize(
    ("view", "expected"),
    [
        (Picked(ROWS, [2, 0]), [ROWS[2], ROWS[0]]),
        (Renamed(ROWS, {"text": "b", "a": "a"}), [{"text": "x", "a": 1}, {"a": 2}, {"text": "z"}]),
        (Joined([ROWS[:1], [], ROWS[1:]]), ROWS),
        (Labelled(ROWS, "a", 7), [{"a": 7, "b": "x"}, {"a": 7}, {"b": "z", "a": 7}]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_views_are_sequences_of_rows(view, expected):
    assert (list(view), len(view), view[-1], view[1:]) == (expected, len(expected), expected[-1], expected[1:])
    with pytest.raises(IndexError, match=f"row {len(expected)} of {len(expected)}"):
        view[len(expected)]
