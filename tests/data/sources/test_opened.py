"""Compressed files give what is in them; broken ones are said to be broken."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import random
import sys
import zipfile

import pytest
import zstandard

from peftkit.data.sources import digest, read
from peftkit.errors import DataError

ROWS = [{"text": f"{number} {random.Random(number).random()}", "label": "a"} for number in range(2000)]
PLAIN = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def zipped(content: bytes, *names: str) -> bytes:
    import io

    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as packed:
        for name in names:
            packed.writestr(name, content)
    return held.getvalue()


def frames(content: bytes) -> bytes:
    """Two frames, as `zstd a b` and parallel writers leave them."""
    half = len(content) // 2
    return zstandard.compress(content[:half]) + zstandard.compress(content[half:])


PACKED = {
    "a.jsonl.gz": gzip.compress(PLAIN),
    "a.jsonl.bz2": bz2.compress(PLAIN),
    "a.jsonl.xz": lzma.compress(PLAIN),
    "a.jsonl.zst": frames(PLAIN),
    "a.jsonl.zip": zipped(PLAIN, "a.jsonl"),
    "A.zip": zipped(PLAIN, "folder/", "folder/b.jsonl", "__MACOSX/folder/._b.jsonl"),
}


@pytest.mark.parametrize("name", PACKED)
def test_compressed_files_give_their_rows(tmp_path, name):
    (tmp_path / name).write_bytes(PACKED[name])
    assert read(str(tmp_path / name)).rows == ROWS


@pytest.mark.parametrize("name", PACKED)
def test_a_file_that_breaks_off_is_said_to_be_broken(tmp_path, name):
    (tmp_path / name).write_bytes(PACKED[name][: len(PACKED[name]) * 2 // 3])
    with pytest.raises(DataError, match=rf"^{name} is broken: its \.\w+ compression does not end well .*again$"):
        read(str(tmp_path / name))


@pytest.mark.parametrize("name", ["a.txt.gz", "a.txt.bz2", "a.txt.xz", "a.txt.zst", "a.txt.zip"])
def test_what_is_not_compressed_at_all_is_broken_too(tmp_path, name):
    (tmp_path / name).write_bytes(b"a secret text, and not compressed")
    with pytest.raises(DataError, match=rf"^{name} is broken") as raised:
        read(str(tmp_path / name))
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("suffix", ["csv", "tsv", "txt", "json", "conll"])
def test_every_text_format_may_be_compressed(tmp_path, suffix):
    content = {"csv": "a,b\n1,2", "tsv": "a\tb\n1\t2", "txt": "one", "json": '[{"a": 1}]', "conll": "x O"}[suffix]
    (tmp_path / f"plain.{suffix}").write_text(content)
    (tmp_path / f"packed.{suffix}.gz").write_bytes(gzip.compress(content.encode()))
    assert read(str(tmp_path / f"packed.{suffix}.gz")).rows == read(str(tmp_path / f"plain.{suffix}")).rows


def test_a_wrong_encoding_is_found_through_the_compression(tmp_path):
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"one\ntwo \xfc\n", mtime=0))
    with pytest.raises(DataError, match=r"a\.txt\.gz line 2: byte 8 of the file is not UTF-8"):
        read(str(tmp_path / "a.txt.gz"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.zip", zipped(b"", "a.csv", "b.csv"), r"a\.zip holds 2 files; .*unpack it and name the folder"),
        ("a.zip", zipped(b"x", "a.exe"), r"a\.zip has a suffix that names no format"),
        (
            "a.parquet.gz",
            gzip.compress(b"", mtime=0),
            r"compressed \.parquet file, which is not read in a stream: unpack it",
        ),
        ("a.jsonl.gz", gzip.compress(b"", mtime=0), r"a\.jsonl\.gz is empty"),
        ("a.jsonl.zst", zstandard.compress(b""), r"a\.jsonl\.zst is empty"),
        ("a.jsonl.gz", gzip.compress(b"{}\n{", mtime=0), r"a\.jsonl\.gz line 2, column 2: broken JSON"),
    ],
)
def test_what_else_can_be_wrong(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read(str(tmp_path / name))


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "zstandard", None)
    (tmp_path / "a.jsonl.zst").write_bytes(PACKED["a.jsonl.zst"])
    with pytest.raises(DataError, match=r"a\.jsonl\.zst needs the package zstandard: pip install zstandard"):
        read(str(tmp_path / "a.jsonl.zst"))


def test_the_same_bytes_under_another_suffix_are_other_rows(tmp_path):
    for name in ("a.txt", "b.txt", "a.csv"):
        (tmp_path / name).write_text("a,b\n1,2\n")
    of = {name: digest(str(tmp_path / name)) for name in ("a.txt", "b.txt", "a.csv")}
    assert of["a.txt"] == of["b.txt"] != of["a.csv"]
