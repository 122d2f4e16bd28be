"""Many rows lie on disk, few in memory, and both are the same rows."""

from __future__ import annotations

import gc
import json
import resource
import subprocess
import sys

import pytest

from peftkit.data.rows import RowFile
from peftkit.data.sources import read
from peftkit.data.sources.spill import FEW
from peftkit.errors import DataError

MEASURE = """
import sys
from peftkit.data.sources import read
def peak(): return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
before = peak()
table = read(sys.argv[1])
print(len(table.rows), peak() - before, sum(len(row["text"]) for row in table.rows))
"""


def write(path, count):
    with path.open("w") as file:
        for number in range(count):
            file.write(json.dumps({"text": f"{number} \u00fc\ud800", "nested": [{"a": number}]}) + "\n\n")
    return str(path)


def test_many_rows_are_the_same_rows(tmp_path):
    source = write(tmp_path / "a.jsonl", FEW + 2)
    few, many = read(source, limit=FEW, cache=tmp_path), read(source, cache=tmp_path)
    assert isinstance(few.rows, list) and isinstance(many.rows, RowFile)
    assert list(many.rows)[:FEW] == few.rows and len(many.rows) == FEW + 2
    assert many.place(FEW + 1) == f"a.jsonl line {2 * FEW + 3}"
    picked = many.pick([FEW + 1, 0])
    assert list(picked.rows) == [many.rows[FEW + 1], few.rows[0]] and picked.place(0) == many.place(FEW + 1)


def test_rows_on_disk_go_with_the_table(tmp_path):
    table = read(write(tmp_path / "a.jsonl", FEW + 1), cache=tmp_path / "cache")
    (folder,) = (tmp_path / "cache" / "rows").iterdir()
    assert table.rows[FEW] and folder.is_dir()
    del table
    gc.collect()
    assert not folder.exists()


def test_an_error_late_in_a_file_leaves_nothing_behind(tmp_path):
    source = write(tmp_path / "a.jsonl", FEW + 1)
    with (tmp_path / "a.jsonl").open("a") as file:
        file.write("{")
    with pytest.raises(DataError, match=rf"a\.jsonl line {2 * FEW + 3}, column 2: broken JSON"):
        read(source, cache=tmp_path / "cache")
    assert not list((tmp_path / "cache" / "rows").iterdir())


def test_a_full_disk_is_the_caches_and_leaves_nothing_behind(tmp_path):
    source = write(tmp_path / "a.jsonl", 2 * FEW)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(
            DataError, match=r"^--data\.cache: .*cache/rows has no room for the rows \(.*another folder$"
        ):
            read(source, cache=tmp_path / "cache")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list((tmp_path / "cache" / "rows").iterdir())


def test_memory_does_not_grow_with_the_file(tmp_path):
    """60 MB of rows, which as Python's objects take twice that, in less than 25 MB (5000 rows are 5 MB of it)."""
    with (tmp_path / "a.jsonl").open("w") as file:
        for number in range(60_000):
            file.write(json.dumps({"text": f"{number:1000d}"}) + "\n")
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, tmp_path / "a.jsonl"], capture_output=True, text=True, check=True
    )
    rows, kilobytes, characters = map(int, done.stdout.split())
    assert (rows, characters) == (60_000, 60_000_000)
    assert kilobytes < 25_000
