"""metrics.jsonl is whole after every row, and after every kind of end."""

from __future__ import annotations

import json
import math
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from peftkit.tracking.jsonl import JsonLines, read_rows, truncate_after
from tests.mounts import small_disk

ROWS = [{"step": step, "loss": 3 / step} for step in (1, 2, 3)]


@pytest.fixture
def file(tmp_path):
    return tmp_path / "run" / "metrics.jsonl"


def test_a_row_is_there_when_write_returns(file):
    log = JsonLines(file)
    for count, row in enumerate(ROWS, 1):
        log.write(row)
        assert [json.loads(line) for line in file.read_text().splitlines()] == ROWS[:count]
    log.close()


def test_another_start_appends(file):
    for row in ROWS:
        log = JsonLines(file)
        log.write(row)
        log.close()
    assert list(read_rows(file)) == ROWS


def test_half_a_line_is_not_written_behind(file):
    file.parent.mkdir()
    file.write_text('{"step": 1}\n{"step": 2, "lo')
    log = JsonLines(file)
    log.write({"step": 2})
    log.close()
    assert file.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_numbers_keep_their_digits_and_become_plain(file):
    log = JsonLines(file)
    log.write(
        {
            "a": 0.1 + 0.2,
            "b": np.float64(1e-8),
            "c": np.int64(3),
            "d": math.nan,
            "e": [math.inf, "é"],
            "f": True,
            "g": file,
        }
    )
    log.close()
    assert json.loads(file.read_text()) == {
        "a": 0.1 + 0.2,
        "b": 1e-8,
        "c": 3,
        "d": None,
        "e": [None, "é"],
        "f": True,
        "g": str(file),
    }


@pytest.mark.parametrize("step", [0, 1, 2, 3, 9])
def test_rows_after_the_step_are_dropped(file, step):
    file.parent.mkdir()
    evaluation = {"step": 2, "split": "validation", "loss": 1.0}
    rows = [*ROWS[:2], evaluation, ROWS[2]]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 4, "lo')
    truncate_after(file, step)
    assert list(read_rows(file)) == [row for row in rows if row["step"] <= step]
    assert file.read_text() == "".join(json.dumps(row) + "\n" for row in rows if row["step"] <= step)
    assert list(file.parent.iterdir()) == [file]


def test_no_file_has_nothing_to_drop(file):
    truncate_after(file, 3)
    assert not file.exists()


def test_no_secret_of_the_environment_is_in_a_row(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "a-token-of-mine")
    log = JsonLines(tmp_path / "metrics.jsonl")
    log.write({"step": 1, "source=a-token-of-mine/f1": 0.5})
    log.close()
    assert list(read_rows(tmp_path / "metrics.jsonl")) == [{"step": 1, "source=(hidden)/f1": 0.5}]


def test_rows_wait_while_the_disk_is_full(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "64k") as disk:
        log = JsonLines(disk / "metrics.jsonl")
        log.write({"step": 1})
        with suppress(OSError), (disk / "filler").open("wb", buffering=0) as filler:
            while True:
                filler.write(b"0" * 4096)
        for step in range(2, 200):
            log.write({"step": step, "said": "x" * 100})
        assert log.waiting
        (disk / "filler").unlink()
        log.write({"step": 200})
        log.close()
        assert not log.waiting
        assert [row["step"] for row in read_rows(disk / "metrics.jsonl")] == list(range(1, 201))
