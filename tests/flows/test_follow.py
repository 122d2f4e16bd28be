"""What follows a run: train, eval and export as a chain of jobs on a real SLURM, each once, and none after a failure."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from peftkit.config.read import read, write
from peftkit.errors import PeftkitError
from peftkit.flows.follow import follow
from peftkit.flows.submit import Submitted, is_done, there_already
from peftkit.run_folder import RunFolder
from peftkit.slurm.ledger import Entry, enter, entries
from peftkit.slurm.submit import Record, read_record, write_record
from peftkit.status import Status, write_status
from tests.slurm.cluster import Cluster
from tests.slurm.desk import Desk


@pytest.fixture
def desk(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    monkeypatch.setenv("PEFTKIT_CACHE", str(tmp_path / "cache"))
    return Desk(cluster, tmp_path)


@pytest.mark.launch
@pytest.mark.slurm
def test_train_eval_export(desk: Desk, cluster: Cluster) -> None:
    scores = desk.folder / "scores.json"
    chain = ("--then", f"eval {desk.folder}/chat.jsonl --out {scores}", "export merged")
    said = desk.submit("run", *chain)
    jobs = re.findall(r"job (\d+)", said)
    assert len(jobs) == 3, said
    assert "nothing was submitted" in desk.submit("run", *chain)
    assert [entry.job for entry in entries()] == jobs, "each once"
    for job in jobs:
        assert cluster.wait(job)["JobState"] == "COMPLETED", desk.logs("run")
    assert '"loss"' in scores.read_text()
    assert list((desk.folder / "run/export/merged").glob("*.safetensors"))
    rows = json.loads(desk.peftkit("jobs", "--json"))["jobs"]
    assert [(row["job"], row["state"]) for row in rows] == [(job, "done") for job in jobs]
    assert [row["what"].split()[0] for row in rows] == ["train", "eval", "export"]


@pytest.mark.launch
@pytest.mark.slurm
def test_after_a_failure_nothing_follows_and_the_cause_is_named(desk: Desk, cluster: Cluster) -> None:
    broken = desk.folder / "broken.jsonl"
    broken.write_text('{"prompt": "no answer"}\n')
    said = desk.submit("run", f"--data={broken}", "--then", "export merged")
    train, export = re.findall(r"job (\d+)", said)
    told = desk.peftkit("watch", train, "--every", "0.5", code=2)
    assert "== failed: data: " in told, told
    told = desk.peftkit("watch", export, "--every", "0.5", code=130)
    parent = f"job {train} (train, {desk.folder}/run)"
    assert f"job {export} (export merged) cancelled: it needs {parent}, which did not succeed (data: " in told
    assert cluster.wait(export)["JobState"] == "CANCELLED"
    assert not (desk.folder / "run/export").exists()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """Of a run. squeue says what QUEUE holds; sbatch's answer is always 77."""
    monkeypatch.setenv("PEFTKIT_CACHE", str(tmp_path / "cache"))
    for name, body in {"squeue": f"cat {tmp_path}/queue", "sbatch": "echo 77"}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "queue").touch()
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    found = RunFolder(tmp_path / "run")
    found.slurm.mkdir(parents=True)
    return found


def test_a_job_whose_number_was_lost_is_written_down(folder: RunFolder, tmp_path: Path) -> None:
    write_record(folder, Record("abc"))
    row = ["12", "12", "RUNNING", "None", "1:00", "N/A", "N/A", "node1", "0", "0", "(null)", "run", "peftkit:abc"]
    (tmp_path / "queue").write_text("|".join(row) + "|\n")
    run = read([f"--out={folder.path}", "--slurm.gpus_per_node=0", "--slurm.then=[export merged]"])
    folder.submitted.write_text(write(run))
    assert there_already(run, folder) == Submitted(folder.path, "12", "same")
    assert [entry.job for entry in entries()] == ["12"]
    assert follow(run, folder, read_record(folder)) == ["77"]
    assert "--dependency=afterok:12\n" in folder.follower("1", "export merged").read_text()


def test_nothing_follows_a_run_whose_job_is_not_known(folder: RunFolder) -> None:
    run = read(["--slurm.then=[export merged]"])
    with pytest.raises(PeftkitError, match="is not known"):
        follow(run, folder, Record("abc"))
    assert not entries()


def test_what_followed_a_run_that_is_done_is_not_done_again(folder: RunFolder) -> None:
    """SLURM has forgotten all of it."""
    run = read(["--slurm.then=[eval a.jsonl, export merged]"])
    enter(Entry("13", str(folder.path), "eval a.jsonl", after="12", submitted=1))
    enter(Entry("14", str(folder.path), "export merged", after="13", submitted=2))
    folder.succeeded("13").touch()
    folder.succeeded("14").touch()
    record = Record("abc", "12")
    assert follow(run, folder, record, done=True) == ["13", "14"]
    folder.succeeded("14").unlink()
    assert follow(run, folder, record, done=True) == ["13", "77"]


def test_a_run_that_is_asked_for_more_steps_is_not_done(folder: RunFolder) -> None:
    run = read([f"--out={folder.path}", "--steps=5"])
    folder.config.write_text(write(run))
    write_status(folder.status, Status("done", step=5, steps=5))
    assert is_done(run, folder)
    assert not is_done(run.model_copy(update={"steps": 6}), folder)
