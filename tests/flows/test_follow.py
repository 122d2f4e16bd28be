"""What follows a run: train, eval and export as a chain of jobs on a real SLURM, each once, and none after a failure."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from peftkit.slurm.ledger import entries
from tests.slurm.cluster import Cluster
from tests.slurm.desk import Desk

pytestmark = [pytest.mark.launch, pytest.mark.slurm]


@pytest.fixture
def desk(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    monkeypatch.setenv("PEFTKIT_CACHE", str(tmp_path / "cache"))
    return Desk(cluster, tmp_path)


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
