"""An array of runs on a real SLURM: one job, a folder for each, one of which fails, and what is missing is run again."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from peftkit.config.read import read, write
from peftkit.errors import ConfigError, PeftkitError
from peftkit.flows.array import array_folder, combinations, preview_array, there_already
from peftkit.flows.submit import Submitted
from peftkit.run_folder import RunFolder
from peftkit.slurm.ledger import entries
from peftkit.slurm.submit import Record, read_record, write_record
from peftkit.status import Status, read_status, write_status
from tests.slurm.cluster import Cluster, until
from tests.slurm.desk import Desk


@pytest.mark.launch
@pytest.mark.slurm
def test_three_runs_of_which_one_fails(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEFTKIT_CACHE", str(tmp_path / "cache"))
    desk = Desk(cluster, tmp_path)
    names = [str(tmp_path / f"{name}.jsonl") for name in ("chat", "broken", "other")]
    Path(names[1]).write_text('{"prompt": "no answer"}\n')
    Path(names[2]).write_text(Path(names[0]).read_text())
    array = (f"--array={json.dumps({'data.train': names})}", "--array-limit=2")
    said = desk.submit("runs", *array)
    (job,) = re.findall(r"job (\d+)", said)
    assert f"job {job} of" in desk.submit("runs", *array)
    told = desk.peftkit("watch", desk.folder / "runs", "--every", "1", "--no-log", code=2)
    ends = {line.split(": == ")[0]: line.split(": == ")[1] for line in told.splitlines() if ": == " in line}
    assert (ends[f"{job}_0"], ends[f"{job}_2"]) == ("done", "done"), desk.logs("runs")
    assert ends[f"{job}_1"].startswith("failed: data: ")
    runs = sorted((desk.folder / "runs").glob("0*"))
    assert [(run / "status.json").exists() and len(list((run / "slurm").glob("job-*.log"))) for run in runs] == [
        1,
        1,
        1,
    ]
    Path(names[1]).write_text(Path(names[0]).read_text())
    (again,) = re.findall(r"job (\d+)", desk.submit("runs", *array))
    assert cluster.wait(f"{again}_1")["JobState"] == "COMPLETED", desk.logs("runs")
    assert f"{again}_0" not in cluster.run("squeue", "--states=all", "--array", "--format=%i").stdout
    assert "is done: nothing was submitted" in desk.submit("runs", *array)


@pytest.mark.launch
@pytest.mark.slurm
def test_a_task_is_put_back_alone_and_all_are_cancelled_together(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last task's own number is the whole array's: what means the task alone may not go by it."""
    monkeypatch.setenv("PEFTKIT_CACHE", str(tmp_path / "cache"))
    desk = Desk(cluster, tmp_path)
    long = ("--steps=100000", "--checkpoint.every=50000")
    (job,) = re.findall(r"job (\d+)", desk.submit("runs", "--array={seed: [1, 2]}", *long))
    first, last = (RunFolder(run) for run in sorted((tmp_path / "runs").glob("0*")))

    def step(folder: RunFolder) -> int:
        status = read_status(folder.status)
        return status.step if status and status.state == "running" else 0

    until(lambda: min(step(first), step(last)) > 2, lambda: desk.logs("runs"), 200)
    assert cluster.job(f"{job}_1")["JobId"] == job
    cluster.run("scancel", "--signal=USR1", "--batch", f"{job}_1")
    until(lambda: cluster.job(f"{job}_1")["Restarts"] == "1", lambda: desk.logs("runs"), 200, pause=0.3)
    assert (cluster.job(f"{job}_0")["Restarts"], step(first) > 2) == ("0", True)
    said = desk.peftkit("cancel", job)
    assert f"job {job}_0 (train, {first.path}) has stopped; step " in said
    for task in (f"{job}_0", f"{job}_1"):
        assert cluster.wait(task)["JobState"] in ("CANCELLED", "FAILED")
    assert f"{job}_0: == stopped" in desk.peftkit("watch", job, "--no-log", code=75)


def the_run(out: Path, array: dict[str, object], *words: str):
    return read([f"--out={out}", "--slurm.gpus_per_node=0", f"--slurm.array={json.dumps(array)}", *words])


def test_every_combination_is_a_run_with_a_folder_of_its_own(tmp_path):
    runs = combinations(
        the_run(tmp_path, {"optim.lr": [1e-4, 2e-4], "strategy": [{"name": "lora", "rank": 4}, "full"]})
    )
    assert [(run.optim.lr, run.strategy.name) for run in runs] == [
        (1e-4, "lora"), (1e-4, "full"), (2e-4, "lora"), (2e-4, "full"),
    ]  # fmt: skip
    assert [run.out.name for run in runs] == [
        "000-lr=0.0001-strategy=-name-lora-rank-4", "001-lr=0.0001-strategy=full",
        "002-lr=0.0002-strategy=-name-lora-rank-4", "003-lr=0.0002-strategy=full",
    ]  # fmt: skip
    assert {run.strategy.rank for run in runs if run.strategy.name == "lora"} == {4}
    assert not any(run.slurm.array for run in runs)


def test_what_is_wrong_with_any_of_them_is_told_of_all_before_one_is_submitted(tmp_path):
    with pytest.raises(ConfigError) as told:
        combinations(the_run(tmp_path, {"optim.lr": [1e-4, "fast"], "batch.total": [8, 0]}))
    assert [problem.split(": ")[0] for problem in told.value.problems] == [
        "with lr=0.0001-total=0", "with lr=fast-total=8", "with lr=fast-total=0", "with lr=fast-total=0",
    ]  # fmt: skip


def test_the_names_of_settings_are_checked(tmp_path):
    with pytest.raises(ConfigError, match=r"--optim\.rl"):
        combinations(the_run(tmp_path, {"optim.rl": [1e-4]}))


@pytest.mark.parametrize(
    ("array", "told"),
    [({"seed": []}, "has no values"), ({"out": ["a", "b"]}, "cannot differ"), ({"slurm.nodes": [1]}, "cannot")],
)
def test_what_no_array_can_have_is_refused(array, told, tmp_path):
    with pytest.raises(ConfigError, match=told):
        the_run(tmp_path, array)


def test_what_is_done_is_left_out_of_the_next_job(tmp_path):
    run = the_run(tmp_path, {"seed": [1, 2, 3]}, "--slurm.array_limit=2")
    assert "#SBATCH --array=0,1,2%2\n" in preview_array(run)
    write_status(RunFolder(tmp_path / "001-seed=2").status, Status("done", attempt=4))
    write_status(RunFolder(tmp_path / "002-seed=3").status, Status("stopped", attempt=4))
    text = preview_array(run)
    assert "#SBATCH --array=0,2%2\n" in text
    assert "FIRST_ATTEMPTS=(0 5 5)" in text


def test_while_nobody_can_say_whether_it_is_queued_nothing_is_submitted(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))  # no squeue
    write_record(RunFolder(tmp_path), Record("token", "12"))
    with pytest.raises(PeftkitError, match="does not answer"):
        there_already(the_run(tmp_path, {"seed": [1, 2]}), RunFolder(tmp_path))


def test_a_job_whose_number_was_lost_is_written_down(tmp_path, monkeypatch):
    monkeypatch.setenv("PEFTKIT_CACHE", str(tmp_path / "cache"))
    row = "12_{0}|1{0}|PENDING|Priority|1:00|N/A|N/A||0|0|(null)|run|peftkit:abc|"
    squeue = tmp_path / "squeue"
    squeue.write_text(f"#!/bin/sh\necho '{row.format(0)}'\necho '{row.format(1)}'\n")
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    run, folder = the_run(tmp_path / "runs", {"seed": [1, 2]}), RunFolder(tmp_path / "runs")
    write_record(folder, Record("abc"))
    folder.submitted.write_text(write(run))
    assert there_already(run, folder) == Submitted(folder.path, "12", "same")
    assert read_record(folder) == Record("abc", "12")
    assert [read_record(RunFolder(one.out)).job for one in combinations(run)] == ["12_0", "12_1"]
    assert [(entry.job, len(entry.tasks)) for entry in entries()] == [("12", 2)]


def test_the_same_array_has_the_same_place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["--slurm.gpus_per_node=0", "--slurm.array={seed: [1, 2]}"]
    assert array_folder(read(words)) == array_folder(read(words)) != array_folder(read([*words, "--steps=3"]))
