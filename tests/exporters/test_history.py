"""What a run's folder tells of its training; broken files say nothing."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from peftkit.exporters.history import History, read_history
from peftkit.run_folder import RunFolder
from peftkit.status import Status, write_status

SPLITS = {
    "train": [{"name": "a.jsonl", "digest": "abc.jsonl", "rows": 60, "held_out": {"validation": [1, 4, 22]}}],
    "given": {"test": {"name": "t.csv", "digest": None, "rows": 1200}},
}


def test_rows_steps_and_time_are_told(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.splits.write_text(json.dumps(SPLITS))
    step = {"loss": 2.0, "targets": 1000, "seconds": 40.5, "memory": 2**30}
    rows = [
        {"step": 1, **step},
        {"step": 2, **step, "loss": 9.0},
        {"step": 2, **step, "loss": float("nan")},  # told again by a resumed run
        {"step": 3, **step, "memory": 2**31},
        {"step": 3, "split": "validation", "loss": 1.5},
    ]
    folder.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 4, "lo')
    write_status(folder.status, Status("done", processes=2, device="NVIDIA H100"))
    found = read_history(folder)
    digest = hashlib.sha256(folder.splits.read_bytes()).hexdigest()
    assert found.data() == {
        "train: a.jsonl": "60 rows, 3 held out for validation, sha256 abc",
        "test: t.csv": "1,200 rows",
        "splits.json (which rows, by number)": f"sha256 {digest}",
    }
    assert (found.rows_of("validation"), found.rows_of("test"), found.rows_of("anchor")) == (3, 1200, None)
    assert found.hardware() == {
        "processes": "2",
        "device": "NVIDIA H100",
        "optimizer steps": "3",
        "time in steps": "2 min 2 s",
        "targets learnt": "3,000",
        "memory of the first process, at most": "2.00 GiB",
    }
    assert found.curve() == [(1.0, 2.0), (3.0, 2.0)]
    assert found.curve("validation") == [(3.0, 1.5)]


def test_what_is_not_there_is_not_told(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert read_history(folder) == History()
    for file in (folder.splits, folder.metrics, folder.status):
        file.write_text("[1, 2")
    assert read_history(folder) == History()
    assert (History().data(), History().hardware(), History().curve()) == ({}, {}, [])
