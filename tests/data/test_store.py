"""What is read back is what was encoded."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from peftkit.data.store import Store, write
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
