"""`peftkit jobs` on a real SLURM: what waits and why, what runs and how far, what failed and by whose fault."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from peftkit.flows.jobs import Listing, listing
from peftkit.slurm.ask import Said
from peftkit.slurm.ledger import Entry, enter
from peftkit.slurm.states import Job
from tests.slurm.cluster import Cluster, until
from tests.slurm.pretend import asking, submit


@pytest.fixture(autouse=True)
def _own_ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEFTKIT_CACHE", str(tmp_path / "cache"))


@pytest.mark.slurm
def test_how_each_stands_and_why(cluster: Cluster, tmp_path: Path) -> None:
    def job(name: str, *words: object, options: tuple[str, ...] = ()) -> str:
        return submit(cluster, tmp_path / name, *words, options=options).job

    runs = job("runs", 900, 0.1, options=("--nodes=3", "--exclusive"))
    cluster.wait(runs, "RUNNING")
    waits, big = job("waits", 3), job("big", 3, options=("--nodes=9",))
    long, held = job("long", 3, options=("--partition=urgent", "--time=30")), job("held", 3, options=("--hold",))
    ask, found = asking(cluster), Listing([], [])

    def settled() -> bool:
        nonlocal found
        found = listing(ask=ask)
        rows = {row.job: row for row in found.rows}
        return rows[runs].step > 1 and all("not looked at" not in rows[one].reason for one in (waits, big, long, held))

    until(settled, lambda: f"reasons; they are {found.rows}", pause=0.5)
    rows = {row.job: row for row in found.rows}
    assert (rows[runs].state, rows[runs].steps, rows[runs].reason) == ("running", 900, "")
    assert 0 < (rows[runs].left or 0) <= 20 * 60
    assert rows[waits].state == "waiting"
    assert "busy" in rows[waits].reason or "other jobs" in rows[waits].reason
    # SLURM may say PartitionNodeLimit, or PartitionConfig of both.
    assert "it asks for more nodes" in rows[big].reason
    assert "fewer --nodes" in rows[big].reason
    assert "more time" in rows[long].reason
    assert "a shorter --time" in rows[long].reason
    assert f"scontrol release {held}" in rows[held].reason


@pytest.mark.slurm
def test_who_is_to_blame_when_slurm_ends_a_run(cluster: Cluster, tmp_path: Path) -> None:
    once = ("--no-requeue",)
    late = submit(cluster, tmp_path / "late", 9000, 0.1, options=("--time=1", *once))
    node = submit(cluster, tmp_path / "node", 9000, 0.1, options=("--nodelist=node3", *once))
    gone = submit(cluster, tmp_path / "gone", 9000, 0.1, options=once)
    mute = submit(cluster, tmp_path / "mute", "not a number", options=once)
    for entry in (late, node, gone):
        until(lambda entry=entry: (Path(entry.run) / "status.json").exists(), entry.run)
    cluster.run("scontrol", "update", f"jobid={late.job}", "endtime=now+2seconds")  # SLURM looks every 30 s
    cluster.run("scancel", gone.job)
    cluster.set_down("node3")
    for entry in (late, node, gone, mute):
        cluster.wait(entry.job)
    rows = {Path(row.run).name: row for row in listing(ask=asking(cluster)).rows}
    told = {name: (row.state, row.reason.split(": ")[0]) for name, row in rows.items()}
    assert told == {
        "late": ("failed", "time limit"),
        "node": ("failed", "node"),
        "gone": ("cancelled", rows["gone"].reason),
        "mute": ("failed", "code"),
    }
    assert rows["gone"].reason.startswith("it was cancelled")
    assert "(node3)" in rows["node"].reason
    assert "exit code 1" in rows["mute"].reason


@pytest.mark.slurm
def test_what_can_never_start_is_cancelled_with_what_follows_it_and_the_first_is_named(
    cluster: Cluster, tmp_path: Path
) -> None:
    parent = submit(cluster, tmp_path / "run", 9, 0.1, 3)
    run = str(tmp_path / "run")
    jobs = [parent.job]
    for what in ("eval", "export"):
        options = [f"--dependency=afterok:{jobs[-1]}", "--kill-on-invalid-dep=no", "--output=/dev/null"]
        jobs.append(cluster.submit(*options, "--wrap", "true"))
        enter(Entry(jobs[-1], run, what, after=jobs[-2]))
    cluster.wait(parent.job, "FAILED")
    ask, told = asking(cluster), list[str]()

    def cancelled() -> bool:
        told.extend(listing(ask=ask).told)
        return bool(told)

    until(cancelled, "the cancellation", pause=0.5)
    cause = f"it needs job {parent.job} (train, {run}), which did not succeed (data: row 7 has no text (on "
    assert told[0].startswith(f"job {jobs[1]} (eval) cancelled: {cause}")
    assert told[1:] == [f"job {jobs[2]} (export) cancelled: it needs job {jobs[1]}, which was cancelled"]
    assert [cluster.wait(job)["JobState"] for job in jobs[1:]] == ["CANCELLED", "CANCELLED"]
    shown = cluster.run(sys.executable, "-m", "peftkit", "jobs", "--json")
    rows = json.loads(shown.stdout)["jobs"]
    assert [(row["job"], row["state"]) for row in rows] == list(
        zip(jobs, ["failed", "cancelled", "cancelled"], strict=True)
    )
    assert rows[1]["reason"].startswith(cause), "why is known afterwards, too"


def test_without_slurm_the_runs_own_words_are_listed_and_that_is_said(tmp_path):
    enter(Entry("12", str(tmp_path)))
    found = listing(ask=lambda *words: Said(127, err="not installed"))
    assert "no answer" in found.problem
    assert [(row.job, row.state) for row in found.rows] == [("12", "unknown")]


def test_what_ended_long_ago_is_listed_on_demand(tmp_path):
    enter(Entry("12", str(tmp_path), submitted=1000.0))
    ended = Job("12", "FAILED", raw="12", ends=2000.0, exit_code=1)
    line = f"12|12|FAILED|x|0:00|N/A|1970-01-01T00:33:20|n|0|256|(null)|{ended.name}|x|"

    def ask(*words: str) -> Said:
        return Said(0, line)

    assert listing(ask=ask).rows == []
    assert [row.state for row in listing(everything=True, ask=ask).rows] == ["failed"]
