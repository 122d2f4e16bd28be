"""The SLURM that the tests start is one: jobs on several nodes, fake GPUs, requeues, nodes that fail."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from tests.slurm.cluster import Cluster, missing

pytestmark = pytest.mark.slurm


def wrapped(tmp_path: Path, command: str, *words: str) -> list[str]:
    return [*words, "--output", f"{tmp_path}/log", "--open-mode=append", "--requeue", "--wrap", command]


def test_each_node_is_a_machine_with_gpus_of_its_own(cluster: Cluster, tmp_path: Path) -> None:
    says = "srun --label bash -c 'echo $(hostname) $(getent hosts $(hostname)) $CUDA_VISIBLE_DEVICES'"
    job = cluster.submit(*wrapped(tmp_path, says, "--nodes=2", "--gpus-per-node=2"))
    assert cluster.wait(job)["JobState"] == "COMPLETED"
    said = sorted((tmp_path / "log").read_text().splitlines())
    assert said == ["0: node1 10.77.0.11 node1 0,1", "1: node2 10.77.0.12 node2 0,1"]


def test_a_crashed_node_is_noticed_and_its_job_goes_on_elsewhere(cluster: Cluster, tmp_path: Path) -> None:
    job = cluster.submit(*wrapped(tmp_path, 'echo $SLURM_JOB_NODELIST; [ "$SLURM_RESTART_COUNT" ] || sleep 600'))
    broken = cluster.wait(job, "RUNNING")["NodeList"]
    cluster.crash(broken)
    cluster.set_down(broken)  # SLURM itself would wait for SlurmdTimeout
    assert cluster.wait(job)["JobState"] == "COMPLETED"
    assert broken not in (tmp_path / "log").read_text().splitlines()[-1]


def test_nothing_outlives_it(tmp_path_factory: pytest.TempPathFactory) -> None:
    if reason := missing():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("s")
    with Cluster(folder, nodes=1) as cluster:
        job = cluster.submit("--output=/dev/null", "--wrap", "sleep 600")
        cluster.wait(job, "RUNNING")
        assert of_it(folder)
    assert not of_it(folder)


def of_it(folder: Path) -> list[psutil.Process]:
    """Processes of the cluster: they have its configuration in their environment or on their command line."""
    found = []
    for process in psutil.process_iter():
        try:
            words = [*process.cmdline(), *process.environ().values()]
        except psutil.Error:
            continue
        if any(str(folder) in word for word in words):
            found.append(process)
    return found
