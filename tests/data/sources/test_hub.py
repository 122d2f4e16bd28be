"""What `datasets` saved to disk."""

from __future__ import annotations

from pathlib import Path

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value

from peftkit.data.sources import digest, read
from peftkit.errors import DataError

FEATURES = Features({"text": Value("string"), "label": ClassLabel(names=["neg", "pos"])})
TRAIN = Dataset.from_dict({"text": ["a", "b", "c"], "label": [0, 1, -1]}, features=FEATURES)
TEST = Dataset.from_dict({"text": ["d"], "label": [1]}, features=FEATURES)
ROWS = [{"text": "a", "label": "neg"}, {"text": "b", "label": "pos"}, {"text": "c", "label": None}]


def test_a_saved_dataset_gives_its_rows_in_its_order(tmp_path):
    TRAIN.save_to_disk(str(tmp_path / "one"))
    TRAIN.select([2, 0]).save_to_disk(str(tmp_path / "two"))
    assert read(str(tmp_path / "one")).rows == ROWS
    assert read(str(tmp_path / "two")).rows == [ROWS[2], ROWS[0]]


def test_the_split_is_asked_for_or_named(tmp_path):
    DatasetDict({"train": TRAIN, "test": TEST}).save_to_disk(str(tmp_path / "all"))
    place = str(tmp_path / "all")
    assert read(place).rows == ROWS
    assert read(place, split="test").rows == read(f"{place}:test").rows == [{"text": "d", "label": "pos"}]
    assert digest(place) == digest(f"{place}:train") != digest(place, split="test")
    with pytest.raises(DataError, match=r"all has no split 'tst'; it has: test, train\. Name one: .*all:test"):
        read(f"{place}:tst")


def test_images_are_not_decoded(tmp_path):
    png = b"\x89PNG broken, which only its reader finds"
    data = Dataset.from_dict({"image": [{"bytes": png, "path": None}]}, features=Features({"image": Image()}))
    data.save_to_disk(str(tmp_path / "images"))
    (row,) = read(str(tmp_path / "images")).rows
    assert Path(row["image"]).read_bytes() == png


def test_a_broken_one_is_said_to_be_broken(tmp_path):
    TRAIN.save_to_disk(str(tmp_path / "one"))
    next((tmp_path / "one").glob("*.arrow")).write_bytes(b"no arrow")
    with pytest.raises(DataError, match=r"one is no readable data set of save_to_disk: "):
        read(str(tmp_path / "one"))


@pytest.mark.parametrize(
    ("source", "asked"),
    [
        ("org/name", ("org/name", None, "validation")),
        ("name:test", ("name", None, "test")),
        ("org/name/config:train[:10%]", ("org/name", "config", "train[:10%]")),
    ],
)
def test_a_hub_name_says_configuration_and_split_and_its_labels_go_by_name(monkeypatch, source, asked):
    calls = []

    def hub(name, config, split):
        calls.append((name, config, split))
        return TRAIN

    monkeypatch.setattr("datasets.load_dataset", hub)
    assert read(source, split="validation").rows == ROWS
    assert calls == [asked]
    assert read(source, limit=2).place(1) == f"{source} row 2"
