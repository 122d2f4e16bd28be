"""What is read back is what was encoded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from peftkit.data.encode import length
from peftkit.data.store import Store, Writer, write
from peftkit.tasks.base import IGNORED

numbers = st.lists(st.integers(-(2**40), 2**40), max_size=9)
rows_of_numbers = st.lists(st.tuples(numbers, st.integers(-100, 5)), min_size=1, max_size=9)


@given(rows=rows_of_numbers)
def test_lists_and_single_numbers_come_back(rows, tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    features = [{"input_ids": ids, "labels": label} for ids, label in rows]
    write(folder / "rows", features)
    store = Store(folder / "rows")
    assert [store[row] for row in range(len(store))] == features
    assert store.lengths == [len(ids) for ids, _ in rows]
    assert store.targets == sum(label != IGNORED for _, label in rows)


def test_arrays_of_more_axes_stay_arrays(tmp_path):
    images = [np.full((3, 4, 4), value, dtype=np.float32) for value in (0.5, 1.5)]
    store = write(tmp_path / "rows", [{"pixel_values": image, "labels": 1} for image in images])
    assert len(store) == 2
    assert np.array_equal(store[1]["pixel_values"], images[1])


def test_spoken_rows_of_unlike_lengths_come_back(tmp_path):
    sounds = [np.ones((length, 8), dtype=np.float32) for length in (2, 5)]
    store = write(tmp_path / "rows", [{"sound": sound, "labels": [1, IGNORED]} for sound in sounds])
    assert [store[row]["sound"].shape for row in range(2)] == [(2, 8), (5, 8)]
    assert store.targets == 2


def test_ids_take_four_bytes(tmp_path):
    write(tmp_path / "rows", [{"input_ids": [1, 2, 3]}])
    assert np.load(tmp_path / "rows" / "input_ids.npy").dtype == np.int32


@given(values=st.lists(st.integers(-(2**62), 2**62), min_size=1, max_size=6))
def test_numbers_of_any_size_come_back(values, tmp_path_factory):
    store = write(tmp_path_factory.mktemp("store") / "rows", [{"id": value, "ids": [value]} for value in values])
    assert [store[row] for row in range(len(store))] == [{"id": value, "ids": [value]} for value in values]


@pytest.mark.parametrize(
    "columns",
    [[[1], [], [0.5, 2.0]], [[], [2**40], [1]], [[0.5], [1, 2]], [[], [0.25]], [[-(2**31)], [-(2**31) - 1]]],
)
def test_what_was_written_is_widened_when_a_wider_value_comes(tmp_path, columns):
    store = write(tmp_path / "rows", [{"values": column} for column in columns])
    assert [store[row]["values"] for row in range(len(columns))] == columns


def test_tables_of_unlike_shapes_come_back(tmp_path):
    """The choices of a question: as many texts as there are, padded to the longest of the row."""
    shapes = [(2, 5), (4, 3), (2, 1)]
    tables = [np.arange(a * b).reshape(a, b) for a, b in shapes]
    store = write(tmp_path / "rows", [{"input_ids": one.tolist(), "labels": 0} for one in tables])
    assert all(np.array_equal(store[row]["input_ids"], one) for row, one in enumerate(tables))
    assert store.lengths == [10, 12, 2] == [length({"input_ids": one.tolist()}) for one in tables]


def test_lengths_are_those_of_all_texts_of_a_row_or_of_its_sound(tmp_path):
    pair = {"chosen_input_ids": [1, 2, 3], "chosen_labels": [1, 2, 3], "rejected_input_ids": [1]}
    assert write(tmp_path / "pairs", [pair]).lengths == [4] == [length(pair)]
    assert write(tmp_path / "sound", [{"input_values": [0.5] * 7, "labels": [1, 2]}]).lengths == [7]
    assert write(tmp_path / "image", [{"pixel_values": np.zeros((3, 2, 2)), "labels": 1}]).lengths == [1]


def test_windows_know_their_rows(tmp_path):
    with Writer(tmp_path / "rows") as writer:
        for row, windows in ((0, 2), (3, 1), (4, 3)):
            for window in range(windows):
                writer.add(row, {"input_ids": [row, window]}, group=row % 2)
        store = writer.close()
    assert store.row.tolist() == [0, 0, 3, 4, 4, 4]
    assert store.group.tolist() == [0, 0, 1, 0, 0, 0]
    assert [store.windows_of(rows) for rows in (1, 2, 3, 9, None)] == [2, 3, 6, 6, 6]
    assert store[4] == {"input_ids": [4, 1]}


def test_what_is_not_closed_holds_no_file_open(tmp_path):
    with pytest.raises(ValueError, match="broken"), Writer(tmp_path / "rows") as writer:
        writer.add(0, {"input_ids": [1]})
        raise ValueError("broken")
    assert all(column.file.closed for column in writer._columns.values())


def test_an_array_that_is_read_may_be_written_to(tmp_path):
    store = write(tmp_path / "store", [{"image": np.zeros((2, 3, 3), dtype=np.uint8)}])
    store[0]["image"][0] = 7
    assert store[0]["image"].max() == 0


def test_windows_that_are_added_together_lie_as_if_one_by_one(tmp_path: Path) -> None:
    ids = [np.arange(count, dtype=np.int32) for count in (3, 0, 5, 1)]
    windows = [(row, {"input_ids": one, "labels": row}, row % 2) for row, one in enumerate(ids)]
    wide = [(4, {"input_ids": ids[0], "labels": 1 << 40}, 0), (5, {"input_ids": [7, 8], "labels": 2}, 1)]
    for name, together in (("one", False), ("all", True)):
        with Writer(tmp_path / name) as writer:
            for part in (windows, wide, windows[:2]):
                if together:
                    writer.add_many(part)
                else:
                    for row, features, group in part:
                        writer.add(row, features, group)
            writer.close()
    files = {path.name: path.read_bytes() for path in (tmp_path / "one").iterdir()}
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "all").iterdir()}
