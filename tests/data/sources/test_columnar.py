"""Parquet and Arrow: nested values, dates, labels by name, images and sounds as files."""

from __future__ import annotations

import datetime
import decimal
from pathlib import Path

import pyarrow
import pytest
from pyarrow import feather, ipc, parquet

from peftkit.data.sources import read
from peftkit.errors import DataError

NESTED = [
    {"messages": [{"role": "user", "content": "a"}], "answers": {"text": ["b"], "answer_start": [1]}, "n": None},
    {"messages": [], "answers": {"text": [], "answer_start": []}, "n": 2.5},
]
PNG = b"\x89PNG\r\n\x1a\n rest"
WAV = b"RIFF\x00\x00\x00\x00WAVEfmt "


def write_ipc(table, path, opener):
    with pyarrow.OSFile(str(path), "wb") as file, opener(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=1)


WRITERS = {
    "a.parquet": lambda table, path: parquet.write_table(table, path, row_group_size=1),
    "file.arrow": lambda table, path: write_ipc(table, path, ipc.new_file),
    "stream.arrow": lambda table, path: write_ipc(table, path, ipc.new_stream),
    "a.feather": lambda table, path: feather.write_feather(table, str(path)),
}


@pytest.mark.parametrize("name", WRITERS)
def test_nested_values_stay_as_they_are(tmp_path, name):
    WRITERS[name](pyarrow.Table.from_pylist(NESTED), tmp_path / name)
    assert read(str(tmp_path / name)).rows == NESTED


def test_dates_and_exact_numbers_become_what_json_holds(tmp_path):
    day, moment = datetime.date(2024, 2, 29), datetime.datetime(2024, 2, 29, 12, 30, tzinfo=datetime.UTC)
    table = pyarrow.Table.from_pylist([{"day": day, "at": [moment], "price": decimal.Decimal("1.50")}])
    parquet.write_table(table, tmp_path / "a.parquet")
    assert read(str(tmp_path / "a.parquet")).rows == [
        {"day": "2024-02-29", "at": ["2024-02-29T12:30:00+00:00"], "price": 1.5}
    ]


def test_images_and_sounds_become_files_that_the_rows_name(tmp_path):
    rows = [
        {"image": {"bytes": PNG, "path": "cat.jpeg"}, "sounds": [{"bytes": WAV, "path": None}], "raw": PNG},
        {"image": {"bytes": None, "path": "/there/b.png"}, "sounds": [], "raw": None},
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    first, second = read(str(tmp_path / "a.parquet"), cache=tmp_path / "cache").rows
    assert second == {"image": "/there/b.png", "sounds": [], "raw": None}
    image, sound = Path(first["image"]), Path(first["sounds"][0])
    assert (image.suffix, image.read_bytes(), sound.suffix, sound.read_bytes()) == (".png", PNG, ".wav", WAV)
    assert first["raw"] == first["image"] and image.is_relative_to(tmp_path / "cache")


def test_labels_that_datasets_noted_go_by_their_names(tmp_path):
    from datasets import ClassLabel, Dataset, Features, List, Value

    names = ["O", "B-PER"]
    features = Features(
        {"label": ClassLabel(names=["no", "yes"]), "tags": List(ClassLabel(names=names)), "x": Value("string")}
    )
    data = Dataset.from_dict({"label": [1, None], "tags": [[0, 1], []], "x": ["a", "b"]}, features=features)
    data.to_parquet(str(tmp_path / "a.parquet"))
    assert read(str(tmp_path / "a.parquet")).rows == [
        {"label": "yes", "tags": ["O", "B-PER"], "x": "a"},
        {"label": None, "tags": [], "x": "b"},
    ]


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("content", ["cut", "empty", "other"])
def test_a_broken_file_is_said_to_be_one(tmp_path, name, content):
    path = tmp_path / name
    WRITERS[name](pyarrow.Table.from_pylist([{"a": "secret" * 100}] * 50), path)
    path.write_bytes({"cut": path.read_bytes()[:-900], "empty": b"", "other": b"a secret that is no table"}[content])
    with pytest.raises(DataError, match=rf"^{name} is no readable (Parquet|Arrow) file|^{name} is empty") as raised:
        read(str(path))
    assert "secret" not in str(raised.value)
