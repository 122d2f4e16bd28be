"""Rows of every format, and one clear message for everything that can be wrong with a file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from peftkit.data.sources import digest, read
from peftkit.errors import DataError

ROWS = [
    {"text": 'one, "two"\nthree', "label": "a"},
    {"text": "\u00fc\U0001f30a", "label": "b"},
    {"text": "x", "label": "a"},
]


def put(folder: Path, name: str, content: str | bytes) -> str:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def parquet(folder: Path) -> str:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(ROWS), folder / "rows.parquet")
    return str(folder / "rows.parquet")


LINES = "\n".join(json.dumps(row) for row in ROWS)
CSV = 'text,label\r\n"one, ""two""\nthree",a\r\n\u00fc\U0001f30a,b\r\nx,a\r\n'
WRITERS = {
    "jsonl": lambda folder: put(folder, "rows.jsonl", LINES),
    "jsonl with blank lines": lambda folder: put(folder, "rows.jsonl", "\n" + LINES.replace("\n", "\r\n\r\n") + "\n"),
    "ndjson with BOM": lambda folder: put(folder, "rows.ndjson", b"\xef\xbb\xbf" + LINES.encode()),
    "json list": lambda folder: put(folder, "rows.JSON", json.dumps(ROWS, indent=2)),
    "json data": lambda folder: put(folder, "rows.json", json.dumps({"version": 1, "data": ROWS})),
    "csv": lambda folder: put(folder, "rows.csv", CSV),
    "csv with BOM": lambda folder: put(folder, "rows.csv", b"\xef\xbb\xbf" + CSV.encode()),
    "tsv": lambda folder: put(
        folder, "rows.tsv", CSV.replace(",label", "\tlabel").replace(",a", "\ta").replace(",b", "\tb")
    ),
    "parquet": parquet,
}


@pytest.mark.parametrize("kind", WRITERS)
def test_every_format_gives_the_rows(tmp_path, kind):
    source = WRITERS[kind](tmp_path)
    assert read(source).rows == ROWS
    assert read(source, limit=2).rows == ROWS[:2]


def test_a_text_file_is_a_row_a_line_without_the_blank_ones(tmp_path):
    table = read(put(tmp_path, "a.txt", "one\n\n  \n two \r\nthree"))
    assert table.rows == [{"text": "one"}, {"text": " two "}, {"text": "three"}]
    assert [table.place(row) for row in range(3)] == ["a.txt line 1", "a.txt line 4", "a.txt line 5"]


def test_rows_know_their_lines(tmp_path):
    table = read(put(tmp_path, "a.csv", 'text,label\n"one\ntwo",a\n\nthree,b\n'))
    assert [table.place(row) for row in range(2)] == ["a.csv line 2", "a.csv line 5"]


DEFECTS = {
    "broken line": (
        "a.jsonl",
        '{"text": "secret"}\n{"text": "secret",}\n',
        r"a\.jsonl line 2, column 1\d: broken JSON",
    ),
    "cut line": ("a.jsonl", '{"text": "secret', r"a\.jsonl line 1, column 10: broken JSON"),
    "list line": ("a.jsonl", '\n["secret"]', r"a\.jsonl line 2: a list where an object"),
    "number line": ("a.jsonl", "7", r"a\.jsonl line 1: a number where an object"),
    "number of thousands of digits": (
        "a.jsonl",
        '{"a": ' + "7" * 9999 + "}",
        r"a\.jsonl line 1: .*thousands of digits",
    ),
    "deep nesting": ("a.jsonl", "[" * 200_000, r"a\.jsonl line 1: JSON nested too deeply"),
    "broken json": ("a.json", '[\n{"text": "secret"},\n{"text"}\n]', r"a\.json line 3, column 8: broken JSON"),
    "lines in json": ("a.json", '{"text": "secret"}\n{"text": "secret"}', r"a\.json line 2.*name the file \.jsonl"),
    "object in json": ("a.json", '{"text": "secret"}', r"a\.json is neither a list of objects nor"),
    "text in json": ("a.json", '[{"a": 1}, "secret"]', r"a\.json row 2: a text where an object"),
    "many fields": (
        "a.csv",
        "text,label\na,b\nsecret,b,c\n",
        r"a\.csv line 3: too many fields, 3 where the header names 2",
    ),
    "few fields": ("a.tsv", "text\tlabel\nsecret\n", r"a\.tsv line 2: too few fields, 1 where the header names 2"),
    "open quote": ("a.csv", 'text,label\na,b\n"secret,b\nc,d\n', r"a\.csv line 3: unexpected end of data"),
    "nameless column": ("a.csv", "text,,label\na,b,c\n", r"a\.csv line 1: column 2 has no name"),
    "twin columns": ("a.csv", "text,label,text\na,b,c\n", r"a\.csv line 1: two columns are named text"),
    "latin-1": (
        "a.txt",
        b"one\ntwo secret \xfc\n",
        r"a\.txt line 2: byte 15 of the file is not UTF-8; save the file as UTF-8",
    ),
    "utf-16": ("a.csv", "text\nsecret".encode("utf-16"), r"a\.csv line 1: byte 0 .*looks like UTF-16"),
    "late latin-1": ("a.jsonl", b'{"a": 1}\n' * 5000 + b'"\xff"', r"a\.jsonl line 5001: byte 45001 "),
    "no parquet": ("a.parquet", "secret", r"a\.parquet is no readable Parquet file"),
    "empty jsonl": ("a.jsonl", "", r"a\.jsonl is empty"),
    "empty json": ("a.json", "", r"a\.json is empty"),
    "empty list": ("a.json", "[]", r"a\.json is empty"),
    "header alone": ("a.csv", "text,label\n", r"a\.csv is empty"),
    "blank lines": ("a.txt", "\n\n", r"a\.txt is empty"),
    "unknown suffix": ("a.xlsx", "secret", r"a\.xlsx has a suffix that names no format known here; there are: \.jsonl"),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_every_defect_has_its_message_and_no_row_is_shown(tmp_path, defect):
    name, content, message = DEFECTS[defect]
    with pytest.raises(DataError, match=message) as raised:
        read(put(tmp_path, name, content))
    assert "secret" not in str(raised.value)


def test_a_missing_file_suggests_its_neighbours(tmp_path):
    put(tmp_path, "train.jsonl", LINES)
    with pytest.raises(DataError, match=r"there is no file .*trian\.jsonl \(did you mean .*train\.jsonl\?\)"):
        read(str(tmp_path / "trian.jsonl"))


def test_a_missing_file_without_neighbours_is_said_to_be_missing(tmp_path):
    with pytest.raises(DataError, match=r"there is no file .*nowhere/rows\.csv$"):
        digest(str(tmp_path / "nowhere" / "rows.csv"))


@pytest.mark.parametrize("name", ["", " "])
def test_an_empty_name_is_not_the_folder_one_stands_in(name):
    with pytest.raises(DataError, match="the name of the rows is empty"):
        read(name)


def test_a_name_that_no_file_can_have_is_refused_in_a_sentence():
    with pytest.raises(DataError, match=r"cannot be read: File name too long"):
        read("x" * 5000)


def test_a_folder_of_several_formats_counts_them(tmp_path):
    put(tmp_path, "b.jsonl", LINES)
    put(tmp_path, "a.csv", CSV)
    with pytest.raises(DataError, match=r"data files of several formats \(1 \.csv, 1 \.jsonl\); name those of one"):
        read(str(tmp_path))


def test_a_hub_name_that_cannot_be_had_says_both(monkeypatch):
    import datasets.config

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=r"nobody/nothing is no file here, and the hub does not give it: "):
        read("nobody/nothing")


def test_the_digest_is_that_of_the_bytes(tmp_path):
    first, same, other = (put(tmp_path, name, text) for name, text in (("a.txt", "x"), ("b.txt", "x"), ("c.txt", "y")))
    assert digest(first) == digest(same) != digest(other)
