"""Watching a run on a real SLURM, from the queue to its end."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from peftkit.errors import ConfigError
from peftkit.flows import watch as flow
from peftkit.flows.watch import watch
from peftkit.run_folder import RunFolder
from peftkit.slurm.ledger import Entry, enter
from peftkit.slurm.states import GRACE
from peftkit.status import Failure, Status, write_failure, write_status
from tests.launch import ROOT
from tests.slurm.cluster import Cluster, until
from tests.slurm.pretend import asking, submit


@pytest.fixture(autouse=True)
def _own_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEFTKIT_CACHE", str(tmp_path / "cache"))


@pytest.mark.slurm
def test_from_the_queue_through_a_requeue_to_the_end(cluster: Cluster, tmp_path: Path) -> None:
    before = cluster.submit("--output=/dev/null", "--exclusive", "--nodes=3", "--wrap", "sleep 3")
    cluster.wait(before, "RUNNING")
    entry = submit(cluster, tmp_path / "run", 30, 0.1)
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        if line == "step 5/30":
            RunFolder(tmp_path / "run").stop.touch()

    assert watch(entry.job, say, every=0.5, limit=120, ask=asking(cluster)) == 0
    states = [line.split()[1].rstrip(":") for line in said if line.startswith("== ")]
    assert states[0] == "waiting"
    assert states[-1] == "done"
    requeued = [line for line in said if "put back into the queue" in line]
    assert requeued and "starttime=now" in requeued[0]
    assert [line for line in said if line.startswith("step ")] == [f"step {step}/30" for step in range(1, 31)]


@pytest.mark.slurm
def test_what_fails_ends_with_its_cause_and_code(cluster: Cluster, tmp_path: Path) -> None:
    entry = submit(cluster, tmp_path / "run", 30, 0.1, 3)
    done = cluster.run(sys.executable, "-m", "peftkit", "watch", entry.run, "--every", "0.5")
    assert done.returncode == 2
    assert "== failed: data: row 7 has no text (on " in done.stdout
    assert "peftkit data check" in done.stdout
    assert f"peftkit logs {entry.job}" in done.stdout


@pytest.mark.slurm
def test_without_a_controller_the_runs_own_word_holds(cluster: Cluster, tmp_path: Path) -> None:
    entry = submit(cluster, tmp_path / "run", 60, 0.1)
    until(lambda: (tmp_path / "run/status.json").exists(), "the job to begin")
    config = (cluster.folder / "slurm.conf").read_text().replace("MessageTimeout=30", "MessageTimeout=2")
    nobody_there = tmp_path / "slurm.conf"
    nobody_there.write_text(f"{config}\nSlurmctldPort=9\n")
    ask = asking(cluster, SLURM_CONF=str(nobody_there))
    assert "Unable to contact slurm controller" in ask("squeue").complaint
    said: list[str] = []
    assert watch(entry.job, said.append, every=0.5, limit=120, ask=ask) == 0
    assert {line.split()[1].rstrip(":") for line in said if line.startswith("== ")} == {"running", "done"}
    cluster.wait(entry.job, "COMPLETED")


@pytest.mark.slurm
def test_an_array_is_watched_as_a_whole_and_the_worst_end_counts(cluster: Cluster, tmp_path: Path) -> None:
    runs = [tmp_path / name for name in "abc"]
    for run in runs:
        run.mkdir()
    which = f"runs=({' '.join(map(str, runs))}); fails=(0 2 0)"
    task = "${runs[$SLURM_ARRAY_TASK_ID]} 4 0.1 ${fails[$SLURM_ARRAY_TASK_ID]}"
    script = f"#!/bin/bash\ncd {ROOT}; {which}; {sys.executable} -m tests.slurm.pretend {task}\n"
    (tmp_path / "job.sh").write_text(script)
    job = cluster.submit("--array=0-2%2", f"--output={tmp_path}/%a.log", tmp_path / "job.sh")
    enter(Entry(job, str(tmp_path), tasks=tuple(map(str, runs))))
    said: list[str] = []
    assert watch(job, said.append, every=0.5, limit=120, ask=asking(cluster)) == 2
    assert f"{job}_0: == done" in said
    assert [line for line in said if line.startswith(f"{job}_1: == failed: data: row 7 has no text")]
    assert watch(f"{job}_2", said.append, every=0.5, ask=asking(cluster)) == 0


def status(folder: Path, state, **more) -> None:
    write_status(RunFolder(folder).status, Status(state, **more))


@pytest.mark.parametrize(("state", "code"), [("done", 0), ("stopped", 75), ("failed", 1)])
def test_a_run_without_a_job_is_watched_by_its_own_word(tmp_path, state, code):
    status(tmp_path, state, reason="so it was", step=3, steps=9)
    said: list[str] = []
    assert watch(str(tmp_path), said.append) == code
    assert said[0].startswith(f"== {state}")


def test_what_is_the_users_to_mend_has_code_2(tmp_path):
    status(tmp_path, "failed")
    write_failure(RunFolder(tmp_path), Failure(0, 1, 0, "settings", "ConfigError", "--a is wrong"))
    assert watch(str(tmp_path), lambda line: None) == 2


def test_a_run_that_fell_silent_is_given_up(tmp_path):
    status(tmp_path, "running", updated=time.time() - GRACE - 1)
    said: list[str] = []
    assert watch(str(tmp_path), said.append) == 1
    assert said[0].startswith("== unknown: ")


def test_only_whole_lines_of_a_log_are_told_and_each_once(tmp_path):
    status(tmp_path, "running")
    log = RunFolder(tmp_path).log(0)
    log.parent.mkdir()
    log.write_text("one\ntw")
    followed = flow.Followed(*flow.find(str(tmp_path)))
    (work,) = flow.look_at([followed.entry])
    assert [line for line in followed.news(work) if not line.startswith("==")] == ["one"]
    log.write_text("one\ntwo\n")
    assert list(followed.news(work)) == ["two"]
    log.write_text("new\n")
    assert list(followed.news(work)) == ["new"]


@pytest.mark.parametrize(
    ("word", "told"),
    [("12", "was not submitted by peftkit"), ("no/where", "neither a run's folder nor a job's number")],
)
def test_what_is_no_run_is_refused(word, told):
    with pytest.raises(ConfigError, match=told):
        watch(word, lambda line: None)
