"""A run and its job: found by either name, judged by its last attempt alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from peftkit.errors import ConfigError
from peftkit.run_folder import RunFolder
from peftkit.slurm.ledger import Entry, enter
from peftkit.slurm.states import Job
from peftkit.slurm.submit import Record, write_record
from peftkit.slurm.work import Work, find, followers, tail
from peftkit.status import Failure, Status, write_failure, write_status

OOM = "slurmstepd: error: Detected 1 oom-kill event(s) in StepId=12.0.\n"


@pytest.fixture(autouse=True)
def _own_ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEFTKIT_CACHE", str(tmp_path / "cache"))


def attempt(folder: RunFolder, event: str, number: int, job: str = "12", **more) -> None:
    folder.slurm.mkdir(parents=True, exist_ok=True)
    with folder.attempts.open("a") as file:
        file.write(json.dumps({"event": event, "attempt": number, "job": job, **more}) + "\n")


def test_a_run_is_found_by_its_folder_and_by_its_job(tmp_path, monkeypatch):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").touch()
    old, new = Entry("11", str(run), submitted=1.0), Entry("12", str(run), submitted=2.0)
    after = Entry("13", str(run), "export", after="12", submitted=3.0)
    for entry in (old, new, after):
        enter(entry)
    monkeypatch.chdir(tmp_path)
    assert find("run") == find(str(run)) == [new]
    assert find("13") == [after]
    assert followers(new) == [after]
    assert followers(old) == []


def test_an_array_by_its_number_and_each_task_by_its_own(tmp_path):
    runs = [tmp_path / name for name in "ab"]
    for run in runs:
        RunFolder(run).slurm.mkdir(parents=True)
        RunFolder(run).submitted.touch()
    enter(Entry("20", str(tmp_path), tasks=tuple(map(str, runs))))
    assert [entry.job for entry in find("20")] == ["20_0", "20_1"]
    assert [entry.run for entry in find("20_1")] == [str(runs[1])]
    assert [entry.job for entry in find(str(runs[1]))] == ["20_1"]


def test_a_run_that_was_submitted_elsewhere_says_its_job_itself(tmp_path):
    write_record(RunFolder(tmp_path), Record("token", "12"))
    RunFolder(tmp_path).submitted.touch()
    assert [entry.job for entry in find(str(tmp_path))] == ["12"]


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="is no run's folder"):
        find(str(tmp_path))


def test_an_earlier_attempts_log_and_errors_are_not_the_last_ones(tmp_path):
    folder = RunFolder(tmp_path)
    attempt(folder, "begin", 0, log=0)
    folder.job_log("12").write_text(OOM)
    write_failure(folder, Failure(0, 1, 0, "disk", "OSError", "full"))
    attempt(folder, "end", 0, verdict="again", kind="memory", why="x")
    attempt(folder, "begin", 1, log=len(OOM))
    write_status(folder.status, Status("running", attempt=1, job="12"))
    work = Work(Entry("12", str(tmp_path)), Job("12", "TIMEOUT", raw="12", restarts=1))
    assert (work.attempt, work.failures, work.verdict.kind) == (1, [], "time limit")


def test_what_the_jobs_script_found_on_the_nodes_counts(tmp_path):
    folder = RunFolder(tmp_path)
    attempt(folder, "begin", 0, log=0)
    attempt(folder, "end", 0, verdict="failed", kind="node", why="node2 shows 0 GPUs to 2 processes")
    work = Work(Entry("12", str(tmp_path)), Job("12", "FAILED", raw="12", exit_code=1))
    assert work.reason == "node: node2 shows 0 GPUs to 2 processes"


def test_a_second_jobs_attempts_go_on_counting(tmp_path):
    folder = RunFolder(tmp_path)
    for number, job in ((0, "11"), (1, "11"), (2, "12")):
        attempt(folder, "begin", number, job)
    write_status(folder.status, Status("stopped", attempt=1, job="11"))
    running = Work(Entry("12", str(tmp_path)), Job("12", "RUNNING", raw="12"))
    assert (running.attempt, running.state.state) == (2, "starting")


def test_a_tail_begins_with_a_line_and_after_what_was_there_before(tmp_path):
    file = tmp_path / "log"
    file.write_text("first\nsecond\nthird\n")
    assert tail(file) == "first\nsecond\nthird\n"
    assert tail(file, size=8) == "third\n"
    assert tail(file, start=6) == "second\nthird\n"
    assert tail(file, start=99) == ""
    assert tail(tmp_path / "none") == ""
