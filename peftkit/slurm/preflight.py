"""What is tried on a job's nodes before the training starts, in seconds: srun starts this once on each of them.

The first node listens where the training will meet; the others come with what they found. It says what is amiss, with the
node's name, and leaves all reports in RUN/slurm/preflight-<attempt>.json. Python's own library alone is needed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import secrets
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from peftkit.atomic import write_whole
from peftkit.run_folder import RunFolder

PACKAGES = ("peftkit", "torch", "transformers", "deepspeed", "peft")
DEVICES = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ZE_AFFINITY_MASK")
MEET_SECONDS = 60
"""How long the others try to reach the first node."""
SHARE_SECONDS = 15
"""How long a file may take until it is seen on another node."""
CLOCK_SECONDS = 60
"""How far clocks may be apart: further, and what happened first can no longer be told."""


@dataclass(frozen=True)
class Report:
    """What a node found out about itself."""

    node: str
    host: str = field(default_factory=socket.gethostname)
    clock: float = 0
    """Its time, in seconds since 1970."""
    versions: dict[str, str] = field(default_factory=dict)
    gpus: int | None = None
    """GPUs that its processes see; None where nothing says so."""
    cores: int = 0
    unresolved: list[str] = field(default_factory=list)
    """Nodes whose names lead nowhere from here; the training can do without names."""
    mark: str = ""
    """What it wrote into its file in the run's folder."""
    problem: str = ""
    """Why it cannot take part."""


@dataclass(frozen=True)
class Task:
    """What is to be tried."""

    folder: RunFolder
    attempt: int
    address: str
    port: int
    processes: int
    gpus: int
    nodes: list[str]

    def file(self, node: str) -> Path:
        return self.folder.slurm / f".preflight-{self.attempt}-{node}"


def main(words: Sequence[str]) -> int:
    task, node = read(words)
    found = look(task, node)
    return receive(task, found) if node == task.nodes[0] else report(task, found)


def read(words: Sequence[str]) -> tuple[Task, str]:
    """The task, and the name by which SLURM knows this node."""
    parser = argparse.ArgumentParser(prog="python -m peftkit.slurm.preflight")
    parser.add_argument("--run", type=Path)
    parser.add_argument("--address")
    for name in ("--attempt", "--port", "--processes", "--gpus"):
        parser.add_argument(name, type=int, default=0)
    parser.add_argument("nodes", nargs="+")
    said = parser.parse_args(words)
    task = Task(RunFolder(said.run), said.attempt, said.address, said.port, said.processes, said.gpus, said.nodes)
    return task, os.environ.get("SLURMD_NODENAME") or task.nodes[int(os.environ.get("SLURM_NODEID", "0"))]


def look(task: Task, node: str) -> Report:
    """All that a node can find out by itself. It leaves its mark in the run's folder."""
    found = Report(
        node,
        versions=versions(),
        gpus=visible_gpus(os.environ),
        cores=len(os.sched_getaffinity(0)),
        unresolved=[name for name in task.nodes if not resolves(name)],
        mark=secrets.token_hex(8),
    )
    try:
        task.file(node).write_text(found.mark)
    except OSError as problem:
        return replace(found, problem=f"{node} cannot write in {task.folder.slurm}: {problem.strerror}")
    return found


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "none"
    return found


def visible_gpus(environment: Mapping[str, str]) -> int | None:
    """As many as SLURM lets the processes see; None where neither it nor the machine says so."""
    for name in DEVICES:
        if name in environment:
            return len([one for one in environment[name].split(",") if one.strip()])
    cards = [card for card in Path("/dev").glob("nvidia*") if re.fullmatch(r"nvidia\d+", card.name)]
    return len(cards) or None


def resolves(name: str) -> bool:
    try:
        return bool(socket.getaddrinfo(name, None))
    except OSError:
        return False


def report(task: Task, found: Report) -> int:
    """Meet the first node and tell it. What keeps this one from doing so is told through the folder, and by srun's log."""
    try:
        with meet(task) as line:
            stream = line.makefile("rw", encoding="utf-8")
            first_mark = stream.readline().strip()
            if not found.problem and not sees(task.file(task.nodes[0]), first_mark):
                other = f"{found.node} does not see what {task.nodes[0]} writes in {task.folder.path}"
                found = replace(found, problem=f"{other}: the folder has to be on a file system that all nodes share")
            stream.write(json.dumps(asdict(replace(found, clock=time.time()))) + "\n")
            stream.flush()
            stream.readline()  # the first has judged
    except OSError as problem:
        return unreached(task, found, problem)
    return 0


def meet(task: Task) -> socket.socket:
    """A connection to the first node, which may still be starting."""
    end = time.monotonic() + MEET_SECONDS
    while True:
        try:
            line = socket.create_connection((task.address, task.port), timeout=5)
            line.settimeout(MEET_SECONDS + SHARE_SECONDS * len(task.nodes))
            return line
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)


def unreached(task: Task, found: Report, problem: OSError) -> int:
    where = f"{task.nodes[0]} at {task.address}, port {task.port}"
    why = f"{problem.strerror or problem}; a firewall between nodes, or a name that leads elsewhere?"
    text = f"{found.node} cannot reach {where}: {why}"
    try:
        task.file(found.node).write_text(json.dumps(asdict(replace(found, problem=text))))
    except OSError:
        say(text)
    time.sleep(10)  # let the first say it: the end of any of them ends all
    return 1


def sees(file: Path, mark: str, seconds: float = SHARE_SECONDS) -> bool:
    """Whether the file holds the mark, soon: a network's file system may show it late."""
    end = time.monotonic() + seconds
    while True:
        try:
            os.listdir(file.parent)  # makes NFS look again  # noqa: PTH208
            if file.read_text() == mark:
                return True
        except OSError:
            pass
        if time.monotonic() > end:
            return False
        time.sleep(0.2)


def receive(task: Task, own: Report) -> int:
    """On the first node: take the reports of all, judge, and let the others go."""
    own = replace(own, clock=time.time())
    with socket.create_server(("", task.port), backlog=len(task.nodes)) as server:
        reports, lines = gather(task, own, server)
        problems = [*judge(task, reports), *missing(task, reports)]
        for line in lines:
            with line:
                line.sendall(b"\n")
    told = {"problems": problems, "nodes": [asdict(one) for one in reports.values()]}
    write_whole(task.folder.preflight(task.attempt), json.dumps(told, indent=1))
    for node in task.nodes:
        task.file(node).unlink(missing_ok=True)
    for problem in problems:
        say(problem)
    return 1 if problems else 0


def gather(task: Task, own: Report, server: socket.socket) -> tuple[dict[str, Report], list[socket.socket]]:
    """Every node's report, and the connections that wait for the end of it."""
    reports, lines = {own.node: own}, []
    end = time.monotonic() + MEET_SECONDS + 5
    while len(reports) < len(task.nodes) and (left := end - time.monotonic()) > 0:
        server.settimeout(left)
        try:
            line, _ = server.accept()
            line.settimeout(SHARE_SECONDS + 10)
            stream = line.makefile("rw", encoding="utf-8")
            stream.write(own.mark + "\n")
            stream.flush()
            there = Report(**json.loads(stream.readline()))
        except (OSError, ValueError, TypeError):  # no answer in time, or none of the job's nodes
            continue
        ahead = there.clock - time.time()
        reports[there.node] = replace(there, clock=round(ahead, 3))
        lines.append(line)
    return reports, lines


def judge(task: Task, reports: Mapping[str, Report]) -> Iterator[str]:
    """What is amiss on nodes that were met, a sentence each."""
    first = task.nodes[0]
    for node, found in reports.items():
        if found.problem:
            yield found.problem
        elif node != first and not sees(task.file(node), found.mark):
            other = f"{first} does not see what {node} writes in {task.folder.path}"
            yield f"{other}: the folder has to be on a file system that all nodes share"
        if task.gpus and found.gpus is not None and found.gpus < task.processes:
            yield (
                f"{node} shows {found.gpus} GPU{'s' * (found.gpus != 1)} to {task.processes} processes;"
                f" ask for --gpus-per-node {task.processes}, or for fewer --processes-per-node"
            )
        if found.versions.get("torch") == "none":
            yield f"{node} has no torch for {sys.executable}; name another --python, --venv, --conda or --container"
        for name, here in found.versions.items():
            there = reports[first].versions.get(name)
            if here != there:
                yield f"{node} has {name} {here}, {first} has {there}; all nodes need the same"
        if node != first and abs(found.clock) > CLOCK_SECONDS:
            yield f"the clock of {node} is {found.clock:+.0f} s from that of {first}; an administrator can mend that"


def missing(task: Task, reports: Mapping[str, Report]) -> Iterator[str]:
    """Of nodes that were not met, with what they could say through the folder."""
    for node in task.nodes:
        if node not in reports:
            try:
                yield str(json.loads(task.file(node).read_text())["problem"])
            except (OSError, ValueError, KeyError, TypeError):
                yield f"{node} did not reach {task.nodes[0]} at {task.address}, port {task.port}, within {MEET_SECONDS} s"


def say(text: str) -> None:
    sys.stderr.write(f"preflight: {text}\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
