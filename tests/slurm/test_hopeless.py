"""What depends on a run on a real SLURM: it waits as long as the run may succeed, and no longer."""

from __future__ import annotations

from pathlib import Path

import pytest

from peftkit.run_folder import RunFolder
from peftkit.slurm.hopeless import end_hopeless
from peftkit.slurm.ledger import Entry, enter
from peftkit.slurm.states import Job
from peftkit.slurm.work import Work, look_at
from tests.slurm.cluster import Cluster, until
from tests.slurm.pretend import asking, submit


@pytest.fixture(autouse=True)
def _own_ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEFTKIT_CACHE", str(tmp_path / "cache"))


@pytest.mark.slurm
def test_a_run_that_is_put_back_into_the_queue_is_still_waited_for(cluster: Cluster, tmp_path: Path) -> None:
    ask, run = asking(cluster), RunFolder(tmp_path / "run")
    parent = submit(cluster, run.path, 40, 0.1)
    child = cluster.submit(f"--dependency=afterok:{parent.job}", "--output=/dev/null", "--wrap", "true")
    entry = Entry(child, str(run.path), "export", after=parent.job)
    enter(entry)
    until(run.status.exists, "the run to begin")
    run.stop.touch()
    until(lambda: cluster.job(parent.job).get("Restarts") == "1", "the requeue", pause=0.3)
    assert list(end_hopeless(look_at([entry], ask), ask)) == []
    assert cluster.job(child)["Reason"] == "Dependency"
    assert cluster.wait(parent.job)["JobState"] == "COMPLETED"
    assert cluster.wait(child)["JobState"] == "COMPLETED"


def test_what_runs_or_may_run_is_left_alone(tmp_path):
    waiting = Job("9", "PENDING", "Dependency", raw="9", dependency="afterok:8(unfulfilled)")
    works = [Work(Entry("9", str(tmp_path), "export", after="8"), job) for job in (waiting, Job("9", "RUNNING"), None)]

    def ask(*words: str):
        raise AssertionError(f"asked {words}")

    assert list(end_hopeless(works, ask)) == []
