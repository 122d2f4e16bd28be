"""`peftkit logs`: the first cause first, whatever the other processes and the launcher said after it."""

from __future__ import annotations

import pytest

from peftkit.errors import ConfigError
from peftkit.flows.logs import logs
from peftkit.run_folder import RunFolder
from peftkit.status import Failure, Status, write_failure, write_status


@pytest.fixture
def failed(tmp_path, monkeypatch) -> RunFolder:
    """Process 2 failed in attempt 1, and the others noticed; in attempt 0 something else had."""
    monkeypatch.setenv("PEFTKIT_CACHE", str(tmp_path / "cache"))
    folder = RunFolder(tmp_path / "run")
    write_status(folder.status, Status("failed", attempt=1, step=7, steps=40, processes=3, job=""))
    own = {"processes": 3, "attempt": 1, "step": 7}
    write_failure(folder, Failure(0, kind="peer", type="PeerError", message="process 2 has gone", time=30.0, **own))
    write_failure(folder, Failure(1, kind="peer", type="PeerError", message="process 2 has gone", time=31.0, **own))
    trace = "Traceback (most recent call last):\n  File x\nKeyError: 'text'"
    write_failure(folder, Failure(2, kind="code", type="KeyError", message="'text'", traceback=trace, time=32.0, **own))
    write_failure(folder, Failure(0, processes=3, attempt=0, kind="disk", type="OSError", message="full"))
    folder.logs.mkdir()
    for process in range(3):
        folder.log(process).write_text("".join(f"process {process} line {line}\n" for line in range(30)))
    return folder


def told(folder: RunFolder, **more) -> list[str]:
    said: list[str] = []
    logs(str(folder.path), said.append, **more)
    return said


def test_the_cause_then_everyone_then_the_ends_of_the_logs(failed):
    said = told(failed, lines=2)
    assert said[0].startswith("== failed: code: KeyError: 'text' (process 2 of 3 on ")
    cause, everyone = (
        said.index("the first cause, on process 2:"),
        said.index("all 3 processes that failed, in the order of time:"),
    )
    assert said[cause + 1 : cause + 4] == ["Traceback (most recent call last):", "  File x", "KeyError: 'text'"]
    assert [line.split("  ")[2][:9] for line in said[everyone + 1 : everyone + 4]] == [
        "process 0",
        "process 1",
        "process 2",
    ]
    assert said[-3:] == [f"the end of {failed.log(2)}:", "process 2 line 28", "process 2 line 29"]
    assert not [line for line in said if "full" in line]


def test_one_process(failed):
    said = told(failed, process=0, lines=1)
    assert "process 2 has gone" in said[0]
    assert said[-1] == "process 0 line 29"
    assert not [line for line in said if "KeyError" in line]


def test_a_process_that_there_is_not_is_refused(failed):
    with pytest.raises(ConfigError, match="--process 9"):
        told(failed, process=9)
