"""Cancelling on a real SLURM: what was reached is saved, the job is not put back, and what waits for it goes too."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from peftkit.errors import ConfigError, PeftkitError
from peftkit.flows.cancel import cancel
from peftkit.run_folder import RunFolder
from peftkit.slurm.ask import Said
from peftkit.slurm.ledger import Entry, enter
from peftkit.status import Status, read_status, write_status
from tests.slurm.cluster import Cluster, until
from tests.slurm.desk import Desk
from tests.slurm.pretend import asking, submit


@pytest.fixture(autouse=True)
def _own_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEFTKIT_CACHE", str(tmp_path / "cache"))


def step_of(run: Path) -> int:
    status = read_status(RunFolder(run).status)
    return status.step if status else 0


@pytest.mark.slurm
def test_it_saves_is_not_put_back_and_what_waits_for_it_is_cancelled(cluster: Cluster, tmp_path: Path) -> None:
    run = tmp_path / "run"
    entry = submit(cluster, run, 3000, 0.1)
    after = cluster.submit(f"--dependency=afterok:{entry.job}", "--output=/dev/null", "--wrap", "true")
    enter(Entry(after, str(run), what="export", after=entry.job))
    until(lambda: step_of(run) > 2, "steps")
    done = cluster.run(sys.executable, "-m", "peftkit", "cancel", str(run))
    assert done.returncode == 0, done.stdout
    said = done.stdout.splitlines()
    status = read_status(RunFolder(run).status)
    assert status is not None
    assert said[:3] == [
        f"job {after} (export) is cancelled",
        f"job {entry.job} (train, {run}) is asked to save and stop ({run}/stop)",
        f"job {entry.job} (train, {run}) has stopped; step {status.checkpoint} is saved",
    ]
    assert said[3:] in ([f"job {entry.job} (train) is cancelled"], [])  # it may have ended by itself by then
    assert (status.state, status.attempt) == ("stopped", 0)
    ended = cluster.wait(entry.job)
    assert (ended["JobState"] in ("CANCELLED", "FAILED"), ended["Restarts"]) == (True, "0")
    assert cluster.wait(after)["JobState"] == "CANCELLED"


@pytest.mark.launch
@pytest.mark.slurm
def test_a_training_that_was_cancelled_goes_on_when_it_is_submitted_again(cluster: Cluster, tmp_path: Path) -> None:
    desk, run = Desk(cluster, tmp_path), RunFolder(tmp_path / "run")
    (first,) = re.findall(r"job (\d+)", desk.submit("run", "--steps=100000", "--checkpoint.every=50000"))
    until(lambda: step_of(run.path) > 2, lambda: desk.logs("run"), 200)
    said = desk.peftkit("cancel", run.path)
    stopped = read_status(run.status)
    assert stopped and stopped.state == "stopped", desk.logs("run")
    assert f"has stopped; step {stopped.checkpoint} is saved" in said
    ended = cluster.wait(first)
    assert (ended["JobState"] in ("CANCELLED", "FAILED"), ended["Restarts"]) == (True, "0")
    more = stopped.step + 2
    (second,) = re.findall(r"job (\d+)", desk.submit("run", f"--steps={more}", "--checkpoint.every=50000"))
    assert cluster.wait(second)["JobState"] == "COMPLETED", desk.logs("run")
    done = read_status(run.status)
    assert done and (done.state, done.step, done.attempt, done.job) == ("done", more, 1, second)


@pytest.mark.slurm
def test_at_once(cluster: Cluster, tmp_path: Path) -> None:
    entry = submit(cluster, tmp_path / "run", 3000, 0.1)
    until(lambda: step_of(tmp_path / "run") > 2, "steps")
    said: list[str] = []
    cancel(entry.job, said.append, now=True, ask=asking(cluster))
    assert said == [f"job {entry.job} (train) is cancelled"]
    assert cluster.wait(entry.job)["JobState"] == "CANCELLED"
    assert not RunFolder(tmp_path / "run").stop.exists()


@pytest.mark.slurm
def test_what_waits_has_nothing_to_save(cluster: Cluster, tmp_path: Path) -> None:
    entry = submit(cluster, tmp_path / "run", 3, options=("--begin=now+1hour",))
    cancel(entry.job, lambda line: None, ask=asking(cluster))
    assert cluster.wait(entry.job)["JobState"] == "CANCELLED"
    said: list[str] = []
    cancel(entry.job, said.append, ask=asking(cluster))
    assert said == [f"job {entry.job} (train, {tmp_path}/run) is over: cancelled"]


def running(folder: Path) -> None:
    write_status(RunFolder(folder).status, Status("running", step=3, steps=9, job=""))


def test_a_run_without_a_job_is_asked_to_stop_and_has_its_time(tmp_path):
    running(tmp_path)
    said: list[str] = []
    cancel(str(tmp_path), said.append, wait=0.1, every=0.05)
    assert RunFolder(tmp_path).stop.exists()
    assert said[-1] == f"{tmp_path} has not saved within 0.1 s; the checkpoint before stays good"


def test_a_run_without_a_job_cannot_be_ended_at_once(tmp_path):
    running(tmp_path)
    with pytest.raises(ConfigError, match="runs without a job"):
        cancel(str(tmp_path), lambda line: None, now=True)
    assert not RunFolder(tmp_path).stop.exists()


def test_a_controller_that_is_away_cancels_nothing_and_the_way_out_is_told(tmp_path):
    running(tmp_path)
    enter(Entry("12", str(tmp_path)))

    def away(*words: str) -> Said:
        return Said(1, err="Unable to contact slurm controller (connect failure)")

    with pytest.raises(PeftkitError, match=f"touch {tmp_path}/stop"):
        cancel("12", lambda line: None, ask=away)
    with pytest.raises(PeftkitError, match="job 12 could not be cancelled: Unable to contact"):
        cancel("12", lambda line: None, now=True, ask=away)
