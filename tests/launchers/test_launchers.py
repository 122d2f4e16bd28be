"""launch/'s files for other schedulers: they fit their schemas, and their commands train on two nodes, stop and go on.

Two nodes are two launchers on this machine, each with its own node's number and one process.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import fastjsonschema
import pytest
import yaml

from peftkit.status import read_status
from tests.forked import free_port
from tests.launch import ROOT, environment
from tests.tiny import save_tiny

LAUNCH = ROOT / "launch"
FILES = {"pytorchjob": "kubernetes/pytorchjob.yaml", "jobset": "kubernetes/jobset.yaml", "skypilot": "skypilot.yaml"}
STOPPED = 75


def read(name: str) -> Any:
    return yaml.safe_load((LAUNCH / FILES[name]).read_text())


def pods(name: str) -> list[Any]:
    """The specifications of its pods."""
    held = read(name)["spec"]
    if name == "jobset":
        return [job["template"]["spec"]["template"]["spec"] for job in held["replicatedJobs"]]
    return [replicas["template"]["spec"] for replicas in held["pytorchReplicaSpecs"].values()]


def command(name: str) -> str:
    """The shell's lines that each node runs."""
    if name == "skypilot":
        script: str = read(name)["run"]
        return script
    (lines,) = pods(name)[0]["containers"][0]["args"]
    return str(lines)


# --- schemas


@pytest.fixture(params=FILES)
def checked(request: pytest.FixtureRequest) -> tuple[Any, Callable[[Any], Any]]:
    """A file's content, and what checks it against its schema."""
    here = Path(__file__).parent
    schema = json.loads((here / f"{request.param}.json").read_text())
    shared = json.loads((here / "pod.json").read_text())
    schema["definitions"] |= {name: value for name, value in shared.items() if name != "$comment"}
    return read(request.param), fastjsonschema.compile(schema)


def test_a_file_fits_its_schema(checked: tuple[Any, Callable[[Any], Any]]) -> None:
    content, check = checked
    check(content)


def test_and_no_longer_with_a_word_or_a_kind_changed_anywhere(checked: tuple[Any, Callable[[Any], Any]]) -> None:
    content, check = checked
    for path in places(content):
        changed = deepcopy(content)
        *above, last = path
        holder = changed
        for key in above:
            holder = holder[key]
        holder[f"{last}x"] = holder.pop(last)
        with pytest.raises(fastjsonschema.JsonSchemaException):
            check(changed)


FREE = ("limits", "metadata", "secrets", "volumes")
"""Mappings whose keys are names of ours."""


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of all keys that the schema knows."""
    if isinstance(value, dict) and not (path and path[-1] in FREE):
        for key, inner in value.items():
            yield (*path, key)
            yield from places(inner, (*path, key))
    if isinstance(value, list):
        for at, inner in enumerate(value):
            yield from places(inner, (*path, at))


@pytest.mark.parametrize("name", ["pytorchjob", "jobset"])
def test_a_pod_has_the_time_to_save(name: str) -> None:
    for pod in pods(name):
        (container,) = pod["containers"]
        given = {one["name"]: one.get("value") for one in container["env"]}
        hook = container.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", [""])[-1]
        waits = int(given.get("TORCH_ELASTIC_SHUTDOWN_TIMEOUT") or re.findall(r"sleep (\d+)", hook)[0])
        assert 60 < waits < pod["terminationGracePeriodSeconds"]
        assert {one["name"] for one in container["volumeMounts"]} == {one["name"] for one in pod["volumes"]}
        assert given["GPUS"] == str(container["resources"]["limits"]["nvidia.com/gpu"])


def test_all_nodes_of_a_jobset_start_again_together_and_not_for_wrong_settings() -> None:
    held = read("jobset")["spec"]
    (job,) = held["replicatedJobs"]
    spec = job["template"]["spec"]
    (rule,) = spec["podFailurePolicy"]["rules"]
    assert spec["backoffLimit"] == 0 and spec["template"]["spec"]["restartPolicy"] == "Never"
    assert (rule["action"], rule["onExitCodes"]["values"]) == ("FailJob", [2])
    assert held["failurePolicy"]["rules"][0]["onJobFailureReasons"] == ["PodFailurePolicy"]
    master = next(one for one in spec["template"]["spec"]["containers"][0]["env"] if one["name"] == "MASTER_ADDR")
    assert (
        master["value"]
        == f"{read('jobset')['metadata']['name']}-{job['name']}-0-0.{read('jobset')['metadata']['name']}"
    )


def test_a_stopped_task_of_skypilot_goes_on_however_often() -> None:
    assert read("skypilot")["resources"]["job_recovery"]["recover_on_exit_codes"] == [STOPPED]


# --- commands


@pytest.mark.parametrize("name", FILES)
def test_commands_are_the_shells(name: str) -> None:
    done = subprocess.run(["bash", "-n"], input=command(name), text=True, capture_output=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("launcher", "name"), [("torchrun", "pytorchjob"), ("deepspeed", "jobset"), ("deepspeed", "skypilot")]
)
def test_the_readme_starts_what_the_files_start(launcher: str, name: str) -> None:
    blocks = re.findall(r"^```\n(.*?)^```", (LAUNCH / "README.md").read_text(), re.M | re.S)
    (block,) = [one for one in blocks if one.startswith(launcher)]
    assert flags(block) == flags(command(name)[command(name).index(f"{launcher} --") :])


def flags(text: str) -> list[str]:
    """The flags of a command, up to its end."""
    words = shlex.split(text.split("&\n")[0].replace("\\\n", " ").replace("$(", "").replace(")", ""))
    return sorted(word for word in words if word.startswith("--"))


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of settings for a run that takes some seconds on two processes."""
    folder = tmp_path_factory.mktemp("launchers")
    save_tiny(folder / "base")
    rows = "".join(json.dumps({"text": f"the row of number {at}"}) + "\n" for at in range(64))
    (folder / "rows.jsonl").write_text(rows)
    run = {"model": f"{folder}/base", "data": f"{folder}/rows.jsonl", "task": "causal_lm", "strategy": "full"}
    run |= {"steps": 300, "batch": {"total": 4, "micro": 2}, "precision": "fp32", "deepspeed": "zero2"}
    run |= {"eval": {"before": False, "every": 1000}, "checkpoint": {"every": 1000}}
    (folder / "run.yaml").write_text(yaml.safe_dump(run))
    return folder / "run.yaml"


@pytest.fixture(scope="module")
def expected(settings: Path) -> dict[str, str]:
    """What two processes on one node make of it."""
    words = ["torchrun", "--standalone", "--nproc-per-node", "2", f"{LAUNCH}/train.py", "--config", f"{settings}"]
    out = settings.parent / "one-node"
    subprocess.run([*words, "--out", f"{out}"], env=environment(), check=True, timeout=400, capture_output=True)
    return digests(out)


def digests(run: Path) -> dict[str, str]:
    """sha256 of all that the last checkpoint holds."""
    held: dict[str, str] = json.loads((run / "checkpoints/step-000300/manifest.json").read_text())["files"]
    return {name: digest for name, digest in held.items() if name.endswith(".safetensors")}


class Nodes:
    """A file's command on two nodes, as its scheduler runs it there."""

    def __init__(self, name: str, settings: Path, folder: Path) -> None:
        self.name, self.folder = name, folder
        self.run = folder / "runs/mine"
        (folder / "run.yaml").write_text(settings.read_text())

    def start(self) -> None:
        port = str(free_port())
        places = {"/shared": str(self.folder), "/tmp/hostfile": f"{self.folder}/hostfile", "29500": port}
        lines = command(self.name).replace(". .venv/bin/activate", ":")
        for theirs, ours in places.items():
            lines = lines.replace(theirs, ours)
        self.processes = [self._start(lines, node, port) for node in (0, 1)]

    def _start(self, lines: str, node: int, port: str) -> subprocess.Popen[str]:
        here = {"GPUS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "290"}
        here |= {"RANK": str(node), "JOB_COMPLETION_INDEX": str(node), "SKYPILOT_NODE_RANK": str(node)}
        here |= {"SKYPILOT_NODE_IPS": "127.0.0.1\n127.0.0.2", "SKYPILOT_NUM_GPUS_PER_NODE": "1"}
        log = (self.folder / f"node-{node}.log").open("a")
        with log:
            return subprocess.Popen(
                ["bash", "-c", lines],
                cwd=ROOT,
                env=environment(**here),
                stdout=log,
                stderr=log,
                start_new_session=True,
                text=True,
            )

    def wait_for_steps(self) -> None:
        until = time.monotonic() + 300
        while time.monotonic() < until:
            status = read_status(self.run / "status.json")
            if status and status.state == "running" and (self.run / "metrics.jsonl").read_text().count("\n") > 3:
                return
            assert all(process.poll() is None for process in self.processes), self.said()
            time.sleep(0.05)
        raise TimeoutError(self.said())

    def codes(self) -> list[int]:
        return [process.wait(timeout=300) for process in self.processes]

    def said(self) -> str:
        return "\n".join(file.read_text()[-3000:] for file in sorted(self.folder.glob("node-*.log")))

    def end(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture
def nodes(request: pytest.FixtureRequest, settings: Path, tmp_path: Path) -> Iterator[Nodes]:
    made = Nodes(request.param, settings, tmp_path)
    made.start()
    yield made
    made.end()


@pytest.mark.launch
@pytest.mark.parametrize("nodes", FILES, indirect=True)
def test_two_nodes_stop_together_go_on_and_end_as_one_node_does(nodes: Nodes, expected: dict[str, str]) -> None:
    nodes.wait_for_steps()
    if nodes.name == "jobset":
        (container,) = pods("jobset")[0]["containers"]
        hook = container["lifecycle"]["preStop"]["exec"]["command"]
        subprocess.run(
            [word.replace("/shared", str(nodes.folder)).replace("sleep 290", ":") for word in hook], check=True
        )
    else:
        nodes.processes[1].send_signal(signal.SIGTERM)
    codes, status = nodes.codes(), read_status(nodes.run / "status.json")
    assert status and status.state == "stopped" and 0 < status.step < 300, nodes.said()
    assert codes == ([1, 1] if nodes.name == "pytorchjob" else [STOPPED, STOPPED]), nodes.said()
    nodes.start()
    assert nodes.codes() == [0, 0], nodes.said()
    assert digests(nodes.run) == expected
