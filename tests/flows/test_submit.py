"""Runs on a real SLURM: submitted once, stopped and put back, over their time, crashed, with a node lost, without names."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from peftkit.run_folder import RunFolder
from peftkit.slurm.verdict import attempts
from peftkit.status import read_status
from tests.launch import ROOT
from tests.slurm.cluster import Cluster, until
from tests.tiny import save_tiny

pytestmark = [pytest.mark.launch, pytest.mark.slurm]
NODES = ("--nodes=2", "--gpus-per-node=1", "--cpus-per-task=1", "--time=20m", "--signal-seconds=60")
RUN = (
    "--strategy=full",
    "--batch.total=8",
    "--batch.micro=2",
    "--steps=120",
    "--checkpoint.every=40",
    "--no-eval.before",
)


@dataclass(frozen=True)
class Desk:
    """Where someone sits who submits: a model, rows, and settings for the nodes."""

    cluster: Cluster
    folder: Path

    def submit(self, out: str, *words: str, code: int = 0) -> str:
        """`peftkit submit`; the job's number, or what was said where it has to fail."""
        variables = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        variables["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(self.folder / "plugin")])
        data = [f"--model={self.folder}/llama", f"--data={self.folder}/chat.jsonl", f"--data.cache={self.folder}/cache"]
        place = [f"--out={self.folder / out}", f"--environment={json.dumps(variables)}", "--parsable"]
        command = [sys.executable, "-m", "peftkit", "submit", *data, *RUN, *NODES, *place, *words]
        done = self.cluster.run(*command, PEFTKIT_SITE="", PYTHONPATH=variables["PYTHONPATH"])
        assert done.returncode == code, done.stdout
        return done.stdout.strip().splitlines()[-1] if not code else done.stdout

    def run(self, out: str) -> RunFolder:
        return RunFolder(self.folder / out)

    def log(self, out: str, job: str) -> str:
        file = self.run(out).job_log(job)
        return file.read_text() if file.exists() else "no log"

    def ends(self, out: str) -> list[dict[str, Any]]:
        """How the attempts ended."""
        return [row for row in attempts(self.run(out)) if row["event"] == "end"]

    def wait(self, out: str, job: str, *states: str) -> dict[str, str]:
        try:
            return self.cluster.wait(job, *states)
        except AssertionError as problem:
            raise AssertionError(f"{problem}\n{self.log(out, job)[-6000:]}") from None

    def wait_for_step(self, out: str, job: str, step: int) -> None:
        metrics = self.run(out).metrics

        def reached() -> bool:
            assert self.cluster.job(job)["JobState"] in ("PENDING", "RUNNING", "COMPLETING"), self.log(out, job)[-6000:]
            return metrics.exists() and f'"step": {step},' in metrics.read_text()

        until(reached, lambda: f"step {step}:\n{self.log(out, job)[-6000:]}", 200, pause=0.1)

    def weights(self, out: str) -> dict[str, torch.Tensor]:
        newest = self.run(out).newest_checkpoint()
        assert newest, out
        return {name: value for part in newest.glob("trained-*") for name, value in load_file(part).items()}


@pytest.fixture(scope="module")
def desk(whole_cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Desk:
    folder = tmp_path_factory.mktemp("submit")
    save_tiny(folder / "llama", "llama", attention_dropout=0.1)
    rows = [{"prompt": f"say {row}", "response": "word " * (1 + row % 5)} for row in range(40)]
    (folder / "chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    plugin = folder / "plugin"
    (plugin / "unlucky-1.dist-info").mkdir(parents=True)
    (plugin / "unlucky-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: unlucky\nVersion: 1\n")
    (plugin / "unlucky-1.dist-info" / "entry_points.txt").write_text("[peftkit.tasks]\nunlucky = unlucky:Unlucky\n")
    (plugin / "unlucky.py").write_text(UNLUCKY)
    return Desk(whole_cluster, folder)


UNLUCKY = '''
import os
from typing import Any
from peftkit.tasks.chat import Chat

class Unlucky(Chat, name="unlucky"):
    """A chat that fails on one process, on its third step."""

    def targets(self, batch: Any) -> Any:
        count = Unlucky.seen = getattr(Unlucky, "seen", 0) + 1
        if os.environ["RANK"] == "1" and count > 4:
            raise ZeroDivisionError("the dog ate the gradient")
        return super().targets(batch)
'''


@pytest.fixture(scope="module")
def whole(desk: Desk) -> str:
    """A run that nothing happens to; it was submitted three times."""
    first = desk.submit("whole")
    said = desk.submit("whole", "--steps=121", code=2)  # at once: it has not ended by now
    assert desk.submit("whole") == desk.submit("whole", "--steps=120") == first, "one job for one run"
    assert f"has job {first}" in said and "another --steps" in said
    assert desk.wait("whole", first)["JobState"] == "COMPLETED", desk.log("whole", first)[-6000:]
    return first


def test_a_run_is_submitted_once_and_ends_with_its_model(desk: Desk, whole: str) -> None:
    status = read_status(desk.run("whole").status)
    assert status and (status.state, status.step, status.job, status.processes) == ("done", 120, whole, 2)
    (end,) = desk.ends("whole")
    assert (end["verdict"], end["attempt"]) == ("done", 0)
    assert (
        "is done: nothing was submitted"
        in desk.cluster.run(sys.executable, "-m", "peftkit", "submit", f"--out={desk.folder / 'whole'}").stdout
    )


def test_each_node_had_a_gpu_and_all_were_tried_before(desk: Desk, whole: str) -> None:
    told = json.loads(desk.run("whole").preflight(0).read_text())
    assert told["problems"] == []
    assert [(node["node"], node["gpus"], node["unresolved"]) for node in told["nodes"]] == [
        ("node1", 1, []),
        ("node2", 1, []),
    ]


def test_stopped_and_put_back_is_bit_for_bit_uninterrupted(desk: Desk, cluster: Cluster, whole: str) -> None:
    """Twice: in the middle, and before the training has come to its first step."""
    job = desk.submit("turns")
    until(lambda: "begins on" in desk.log("turns", job), lambda: desk.log("turns", job))
    cluster.run("scancel", "--signal=USR1", "--batch", job)
    until(lambda: len(desk.ends("turns")) == 1, lambda: desk.log("turns", job)[-6000:], 200)
    desk.wait_for_step("turns", job, 7)
    cluster.run("scancel", "--signal=USR1", "--batch", job)
    assert desk.wait("turns", job)["JobState"] == "COMPLETED", desk.log("turns", job)[-6000:]
    assert [row["verdict"] for row in desk.ends("turns")] == ["again", "again", "done"]
    expected, found = desk.weights("whole"), desk.weights("turns")
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    steps = [
        json.loads(line)["step"] for line in desk.run("turns").metrics.read_text().splitlines() if '"split"' not in line
    ]
    assert steps == list(range(1, 121)), "every step once"


def test_a_training_that_takes_longer_than_its_time_goes_on(desk: Desk, cluster: Cluster) -> None:
    """Its time is over in a few seconds; after the second turn began, a user ends it by hand."""
    job = desk.submit("long", "--steps=100000", "--checkpoint.every=50000", "--data.holdout=0")
    desk.wait_for_step("long", job, 2)
    cluster.run("scontrol", "update", f"jobid={job}", "endtime=now+35seconds")  # SLURM looks every 30 s
    until(lambda: len(attempts(desk.run("long"))) == 3, lambda: desk.log("long", job)[-6000:], 200)
    (turn,) = desk.ends("long")
    assert (turn["verdict"], turn["kind"]) == ("again", "time limit") and turn["step"] >= 2
    desk.run("long").stop.touch()
    ended = desk.wait("long", job)
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("FAILED", "75:0", "1")
    assert desk.ends("long")[1]["verdict"] == "stopped" and desk.ends("long")[1]["step"] > turn["step"]
    assert f"going on from {desk.run('long').checkpoint(turn['step'])}" in desk.log("long", job)


def test_the_process_that_failed_is_named_and_nothing_is_put_back(desk: Desk, cluster: Cluster) -> None:
    job = desk.submit("unlucky", "--task=unlucky")
    assert desk.wait("unlucky", job)["JobState"] == "FAILED"
    (end,) = desk.ends("unlucky")
    assert (end["verdict"], end["kind"]) == ("failed", "code")
    assert "the dog ate the gradient" in end["why"] and "process 1 of 2 on node2" in end["why"]


def test_a_run_goes_on_without_the_node_that_died(desk: Desk, cluster: Cluster, whole: str) -> None:
    job = desk.submit("crash")
    desk.wait_for_step("crash", job, 6)
    cluster.crash("node2")
    assert desk.wait("crash", job)["JobState"] == "COMPLETED", desk.log("crash", job)[-6000:]
    begins = [row for row in attempts(desk.run("crash")) if row["event"] == "begin"]
    assert [row["nodes"] for row in begins] == [["node1", "node2"], ["node1", "node3"]]
    expected, found = desk.weights("whole"), desk.weights("crash")
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_nodes_without_names_meet_at_their_addresses(desk: Desk, cluster: Cluster) -> None:
    with cluster.without_names():
        job = desk.submit("nameless", "--steps=3")
        assert desk.wait("nameless", job)["JobState"] == "COMPLETED", desk.log("nameless", job)[-6000:]
    assert "meeting at 10.77.0.11:" in desk.log("nameless", job)


def test_a_node_that_shows_too_few_gpus_is_named_before_the_training_starts(desk: Desk, cluster: Cluster) -> None:
    odd = desk.folder / "odd"
    odd.write_text(
        f'#!/bin/bash\n[ "$(hostname)" != node2 ] || export CUDA_VISIBLE_DEVICES=0\nexec {sys.executable} "$@"\n'
    )
    odd.chmod(0o755)
    job = desk.submit("gpus", "--gpus-per-node=2", f"--python={odd}")
    assert desk.wait("gpus", job)["JobState"] == "FAILED"
    assert desk.ends("gpus")[0]["why"].startswith("node2 shows 1 GPU to 2 processes"), desk.log("gpus", job)
    assert read_status(desk.run("gpus").status) is None


def test_a_run_that_makes_room_for_a_more_urgent_job_goes_on_after_it(desk: Desk, cluster: Cluster) -> None:
    job = desk.submit("polite", "--steps=100000", "--checkpoint.every=50000", "--data.holdout=0")
    desk.wait_for_step("polite", job, 2)
    urgent = cluster.submit("--partition=urgent", "--nodes=3", "--exclusive", "--output=/dev/null", "--wrap", "sleep 1")
    assert cluster.wait(urgent)["JobState"] == "COMPLETED"
    until(lambda: len(attempts(desk.run("polite"))) == 3, lambda: desk.log("polite", job)[-6000:], 200)
    (turn,) = desk.ends("polite")
    assert turn["verdict"] == "again" and turn["step"] >= 2, turn
    cluster.run("scancel", job)


def test_a_job_that_is_cancelled_stays_so(desk: Desk, cluster: Cluster) -> None:
    """It saves when it is told to end, as before the end of its time; that is no reason to put it back."""
    job = desk.submit("cancelled", "--steps=100000", "--data.holdout=0")
    desk.wait_for_step("cancelled", job, 2)
    cluster.run("scancel", job)
    cluster.wait_idle("node1", "node2")
    assert cluster.job(job)["JobState"] == "CANCELLED", desk.ends("cancelled")


REFUSED: dict[str, tuple[list[str], str]] = {
    "more nodes than there are": (["--nodes=9"], "more nodes than the partition has"),
    "more GPUs than a node has": (["--gpus-per-node=5"], "Requested node configuration is not available"),
    "no such partition": (["--partition=nowhere"], "Invalid partition"),
    "more time than the partition gives": (["--time=3h"], "more time than the partition allows"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_will_never_start_is_refused_in_words(case: str, desk: Desk, cluster: Cluster) -> None:
    words, said = REFUSED[case]
    assert said in desk.submit(f"refused-{list(REFUSED).index(case)}", *words, code=2)
    assert cluster.run("squeue", "--noheader").stdout == ""
