"""Status and error files: whole at every moment, and the first cause among many failures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from peftkit.run_folder import RunFolder
from peftkit.status import (
    Failure,
    Kind,
    Status,
    first_cause,
    read_failures,
    read_status,
    write_failure,
    write_status,
)


def failure(process: int, kind: Kind, time: float, attempt: int = 0) -> Failure:
    return Failure(process, 3, attempt, kind, "RuntimeError", "boom", time=time)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    status = Status("running", attempt=2, step=8, steps=40, checkpoint=5)
    write_status(tmp_path / "status.json", status)
    assert read_status(tmp_path / "status.json") == status
    assert [path.name for path in tmp_path.iterdir()] == ["status.json"]


@pytest.mark.parametrize("content", [None, "", "{", "[]", '{"attempt": 1}'])
def test_what_is_no_status_is_none(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "status.json").write_text(content)
    assert read_status(tmp_path / "status.json") is None


def test_a_later_peftkits_fields_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "status.json").write_text(json.dumps({"state": "done", "mood": "good"}))
    read = read_status(tmp_path / "status.json")
    assert read and read.state == "done"


def test_the_cause_is_the_earliest_that_is_no_consequence(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for one in (
        failure(0, "peer", 1.0),
        failure(2, "memory", 3.0),
        failure(1, "code", 2.0),
        failure(0, "data", 0.0, attempt=1),
    ):
        write_failure(folder, one)
    found = read_failures(folder, 0)
    assert [one.process for one in found] == [0, 1, 2]
    cause = first_cause(found)
    assert cause and cause.process == 1
    assert first_cause([found[0]]) == found[0]
    assert first_cause([]) is None
