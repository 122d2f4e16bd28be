"""What is tried on the nodes before a training: each thing that may be amiss is told with the node's name, in seconds."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from peftkit.run_folder import RunFolder
from peftkit.slurm.port import free_port
from peftkit.slurm.preflight import Report, Task, judge, look, visible_gpus
from tests.launch import ROOT
from tests.slurm.cluster import Cluster

GOOD = {"python": "3.11.7", "torch": "2.13.0"}


def task(folder: Path, **changes: object) -> Task:
    (folder / "slurm").mkdir(exist_ok=True)
    return replace(Task(RunFolder(folder), 0, "127.0.0.1", 1, 2, 2, ["node1", "node2"]), **changes)  # type: ignore[arg-type]


def reports(job: Task, **changes: object) -> dict[str, Report]:
    """Of two nodes of which the second is changed."""
    made = {name: Report(name, versions=GOOD, gpus=2, cores=8, mark=name) for name in job.nodes}
    for name in job.nodes:
        job.file(name).write_text(name)
    return {**made, "node2": replace(made["node2"], **changes)}  # type: ignore[arg-type]


def test_nodes_that_are_alike_are_well(tmp_path: Path) -> None:
    job = task(tmp_path)
    assert list(judge(job, reports(job))) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"gpus": 1}, "node2 shows 1 GPU to 2 processes; ask for --gpus-per-node 2"),
        ({"gpus": 0}, "node2 shows 0 GPUs to 2 processes"),
        ({"versions": {**GOOD, "torch": "2.12.0"}}, "node2 has torch 2.12.0, node1 has 2.13.0"),
        ({"versions": {**GOOD, "torch": "none"}}, "node2 has no torch"),
        ({"clock": -3600.0}, "the clock of node2 is -3600 s from that of node1"),
        ({"problem": "node2 cannot write in it"}, "node2 cannot write in it"),
    ],
)
def test_what_differs_is_told(tmp_path: Path, changes: dict[str, object], said: str) -> None:
    job = task(tmp_path)
    assert any(told.startswith(said) for told in judge(job, reports(job, **changes)))


def test_a_folder_that_is_not_shared_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("peftkit.slurm.preflight.SHARE_SECONDS", 0.1)
    job = task(tmp_path)
    made = reports(job)
    job.file("node2").unlink()
    assert any("node1 does not see what node2 writes" in told for told in judge(job, made))


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    job = replace(task(tmp_path), folder=RunFolder(tmp_path / "nowhere"))
    assert look(job, "node1").problem.startswith("node1 cannot write in")


def test_gpus_are_counted_as_the_processes_see_them() -> None:
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "0,1"}) == 2
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": ""}) == 0
    assert visible_gpus({"ROCR_VISIBLE_DEVICES": "3"}) == 1


def test_a_port_is_free_and_another_for_every_attempt() -> None:
    ports = {free_port(f"7.{attempt}") for attempt in range(20)}
    assert len(ports) > 15 and free_port("7.0") == free_port("7.0")
    with socket.create_server(("", free_port("7.0"))) as taken:
        assert free_port("7.0") != taken.getsockname()[1]


@pytest.mark.slurm
@pytest.mark.parametrize("case", ["well", "few GPUs", "unreachable"])
def test_on_nodes(cluster: Cluster, tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three real nodes: all is well; one has too few GPUs; one asks at an address where nobody is."""
    RunFolder(tmp_path).slurm.mkdir()
    address = {"unreachable": '$([ "$SLURM_NODEID" = 1 ] && echo 10.77.0.99 || echo 10.77.0.11)'}.get(case, "node1")
    hide = "[ $SLURM_NODEID != 2 ] || export CUDA_VISIBLE_DEVICES=1;" if case == "few GPUs" else ""
    words = f"--run {tmp_path} --address {address} --port 23456 --processes 2 --gpus 2 node1 node2 node3"
    # As if a minute had passed.
    quick = "import sys; from peftkit.slurm import preflight as p; p.MEET_SECONDS = 3; sys.exit(p.main(sys.argv[1:]))"
    line = (
        f"export PYTHONPATH={ROOT}; srun --kill-on-bad-exit=1 bash -c '{hide} {sys.executable} -c \"{quick}\" {words}'"
    )
    start = time.monotonic()
    job = cluster.submit("--nodes=3", "--gpus-per-node=2", f"--output={tmp_path}/log", "--wrap", line)
    state = cluster.wait(job)["JobState"]
    said = (tmp_path / "log").read_text()
    assert (state == "COMPLETED") == (case == "well"), said
    told = json.loads(RunFolder(tmp_path).preflight(0).read_text())
    expected = {
        "well": [],
        "few GPUs": ["node3 shows 1 GPU to 2 processes; ask for --gpus-per-node 2, or for fewer --processes-per-node"],
        "unreachable": ["node2 cannot reach node1 at 10.77.0.99, port 23456: "],
    }[case]
    assert len(told["problems"]) == len(expected) and all(
        found.startswith(text) for found, text in zip(told["problems"], expected, strict=True)
    ), told["problems"]
    assert all(problem in said for problem in told["problems"])
    assert time.monotonic() - start < 60
    assert os.listdir(RunFolder(tmp_path).slurm) == ["preflight-0.json"]  # noqa: PTH208
