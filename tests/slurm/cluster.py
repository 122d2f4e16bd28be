"""A real SLURM on this machine: munged, slurmctld and some slurmd, each node with a network, name and processes of its own.

with Cluster(folder, nodes=3) as cluster:
    job = cluster.run("sbatch", "--parsable", "job.sh").stdout.strip()
    assert cluster.wait(job)["JobState"] == "COMPLETED"
    cluster.crash("node2")                     # a power failure: everything on it is gone at once

It needs root, for the namespaces, and nothing of the machine's own configuration: two of them may stand side by side. What
it started ends with it, and with this process, however that ends.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path

import psutil

from tests.launch import environment

NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "unshare", "nsenter", "setpriv", "ip")
PACKAGES = "slurm-wlm munge iproute2 util-linux"
SUBNET = "10.77.0"
ENDED = (
    "COMPLETED",
    "FAILED",
    "TIMEOUT",
    "CANCELLED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "DEADLINE",
    "BOOT_FAIL",
)
CRED_EXPIRE = 5
"""Seconds that a requeued job waits before it may start again; SLURM's own default is 120, its least is 5."""

CONFIG = """\
ClusterName=tests
FirstJobId={first_job}
SlurmctldHost=control({subnet}.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock,cred_expire={cred_expire}
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SwitchType=switch/none
MpiDefault=none
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=2,sched_min_interval=0,bf_interval=2,requeue_setup_env_fail
SlurmdTimeout=15
MessageTimeout=30
SlurmctldTimeout=30
KillWait=5
MinJobAge=900
EpilogMsgTime=0
CompleteWait=0
ReturnToService=2
InactiveLimit=0
JobRequeue=1
GresTypes=gpu
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc={folder}/jobcomp.txt
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=main Nodes=node[1-{nodes}] Default=YES MaxTime=60 DefaultTime=20 State=UP PriorityTier=1 GraceTime=60
PartitionName=urgent Nodes=node[1-{nodes}] MaxTime=10 State=UP PriorityTier=2
"""
# SlurmdParameters=config_overrides: the nodes may have more cores than the machine. A task's memory is not counted: there are
# no cgroups here to hold it to that.


def missing() -> str:
    """Why there can be no cluster here; nothing if there can."""
    absent = [name for name in NEEDED if shutil.which(name) is None]
    if absent:
        return f"no SLURM here ({', '.join(absent)}); as root: apt-get install {PACKAGES}"
    spaces = ["unshare", "--net", "--uts", "--mount", "--pid", "--fork", "true"]
    tried = subprocess.run(spaces, capture_output=True, text=True, check=False)
    if os.geteuid() or tried.returncode:
        return (
            f"no namespaces for SLURM's nodes (root is needed, and CAP_SYS_ADMIN): {tried.stderr.strip() or 'no root'}"
        )
    return ""


class Cluster:
    """`nodes` nodes node1, node2, ..., with `cpus` processors and `gpus` GPUs each that are only names."""

    def __init__(self, folder: Path, nodes: int = 3, cpus: int = 4, gpus: int = 2) -> None:
        self.folder, self.cpus, self.gpus = folder, cpus, gpus
        self.nodes = [f"node{number}" for number in range(1, nodes + 1)]
        self._started: dict[str, psutil.Popen] = {}
        self._inside: dict[str, psutil.Process] = {}

    def __enter__(self) -> Cluster:
        try:
            self._write()
            self._start("munged", *self._munged())
            until(lambda: (self.folder / "munge.sock").exists(), "munged")
            self._control()
            self.start_controller()
            for node in self.nodes:
                self.start(node)
            self.wait_idle(*self.nodes)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # What a user of the cluster does

    def run(self, *words: str | Path, timeout: float = 120, **more: str) -> subprocess.CompletedProcess[str]:
        """Run a command where the controller runs, with `more` in its environment; stderr is in stdout."""
        return subprocess.run(
            [*self.entering("control"), *map(str, words)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            env=environment(**{**self.environment, **more}),
            check=False,
        )

    @cached_property
    def environment(self) -> dict[str, str]:
        """What a command needs to find this cluster."""
        return {"SLURM_CONF": str(self.folder / "slurm.conf")}

    def submit(self, *words: str | Path) -> str:
        """sbatch; returns the job's number."""
        done = self.run("sbatch", "--parsable", *words)
        assert done.returncode == 0, done.stdout
        return done.stdout.strip().splitlines()[-1]

    def job(self, job: str) -> dict[str, str]:
        """What scontrol shows of a job: JobState, Reason, NodeList, Restarts, ...; nothing if it knows none."""
        shown = self.run("scontrol", "--oneliner", "show", "job", job)
        pairs = (word.partition("=") for word in shown.stdout.split("\n")[0].split(" "))
        return {name: value for name, _, value in pairs} if shown.returncode == 0 else {}

    def wait(self, job: str, *states: str, timeout: float = 240) -> dict[str, str]:
        """The job once it is in one of the states (left out: in one that ends it), or an error with what it was instead."""
        found: dict[str, str] = {}

        def arrived() -> bool:
            found.clear()
            found.update(self.job(job))
            return found.get("JobState") in (*states, *ENDED)

        wanted = " or ".join(states or ENDED)
        until(arrived, lambda: f"job {job} to be {wanted}; it is {found}", timeout, pause=0.3)
        assert not states or found["JobState"] in states, f"job {job} was to be {wanted}; it is {found}"
        return found

    # What happens to a cluster

    def crash(self, node: str) -> None:
        """Cut the node's power."""
        self._inside.pop(node).kill()
        self._started.pop(f"{node}.slurmd").wait()
        self._started.pop(node).wait()

    def start(self, node: str) -> None:
        """Switch the node on, or start slurmd again on one that has lost it."""
        if node not in self._inside:
            self._boot(node)
        (self.folder / f"spool-{node}").mkdir(exist_ok=True)
        self._start(
            f"{node}.slurmd", *self.entering(node), "slurmd", "-D", "-N", node, "-f", str(self.folder / "slurm.conf")
        )

    def kill_slurmd(self, node: str) -> None:
        """End the node's daemon; what runs on the node goes on."""
        enterer = self._started.pop(f"{node}.slurmd")  # nsenter, which waits for the one inside
        for inside in enterer.children():
            inside.kill()
        enterer.wait()

    def unplug(self, node: str) -> None:
        """Cut the node's network; what runs on it goes on, alone."""
        self._ip("link", "set", f"to-{node}", "down")

    def plug(self, node: str) -> None:
        self._ip("link", "set", f"to-{node}", "up")

    def set_down(self, node: str, reason: str = "a test") -> None:
        """As an administrator does: its jobs end at once as those of a node that failed."""
        self.run("scontrol", "update", f"nodename={node}", "state=down", f"reason={reason}")

    def set_up(self, node: str) -> None:
        self.run("scontrol", "update", f"nodename={node}", "state=resume")

    def mend(self) -> None:
        """All nodes up and idle again, no job left."""
        self.run("scancel", "--user=root")
        for node in self.nodes:
            if f"{node}.slurmd" not in self._started:
                self.start(node)
            if self.node_state(node).rstrip("*") in ("down", "drained", "drain"):
                self.set_up(node)
        self.wait_idle(*self.nodes)

    def node_state(self, node: str) -> str:
        """idle, mixed, allocated, down, ...; with a * if it does not answer."""
        return self.run("sinfo", "--noheader", "--nodes", node, "--format", "%T").stdout.split("\n")[0].strip()

    def wait_idle(self, *nodes: str, timeout: float = 120) -> None:
        """Until the nodes are up and answer, and no job is left."""

        def idle() -> bool:
            # What sinfo calls mixed may be idle: it sees what was allocated a second before, until something else happens.
            up = all(self.node_state(node) in ("idle", "mixed", "allocated") for node in nodes)
            return up and not self.run("squeue", "--noheader").stdout

        until(idle, lambda: self._unwell(nodes), timeout, 0.2)

    def stop_controller(self) -> None:
        """As a controller that crashed: jobs go on."""
        found = self._started.pop("slurmctld")
        found.kill()
        found.wait()

    def start_controller(self) -> None:
        self._start("slurmctld", *self.entering("control"), "slurmctld", "-D", "-f", str(self.folder / "slurm.conf"))

    @contextmanager
    def without_names(self) -> Iterator[None]:
        """Node names that resolve nowhere, not even to the node itself: SLURM has addresses of its own (NodeAddr)."""
        hosts = self.folder / "hosts"
        kept = hosts.read_text()
        hosts.write_text("127.0.0.1 localhost\n")  # the same file: each node has it mounted over its own
        try:
            yield
        finally:
            hosts.write_text(kept)

    def stop(self) -> None:
        """End all of it: the nodes with everything that runs on them, then the controller."""
        for name, inside in self._inside.items():
            with suppress(psutil.NoSuchProcess):
                inside.kill()  # psutil looks at the start time: a number given to another process is left alone
            with suppress(psutil.TimeoutExpired, KeyError):
                self._started[name].wait(10)  # it ends when the last process of its machine has
        for process in reversed(self._started.values()):
            process.terminate() if process.is_running() else None
            with suppress(psutil.TimeoutExpired):
                process.wait(5)
            if process.is_running():
                process.kill()
                process.wait()
        self._started.clear()
        self._inside.clear()

    def logs(self, lines: int = 40) -> str:
        """The ends of what the daemons wrote."""
        files = sorted(self.folder.glob("*.log"))
        return "\n".join(f"== {file.name}\n" + "\n".join(file.read_text().splitlines()[-lines:]) for file in files)

    # How it is made

    def _write(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "state").mkdir()
        (self.folder / "munge.key").write_bytes(os.urandom(128))
        (self.folder / "munge.key").chmod(0o400)
        self.folder.chmod(0o755)
        names = [f"{SUBNET}.1 control", *(f"{self.address(node)} {node}" for node in self.nodes)]
        (self.folder / "hosts").write_text("\n".join(["127.0.0.1 localhost", *names, ""]))
        # No DNS in there: it does not answer, and torch would wait for it wherever it looks for a name.
        (self.folder / "nsswitch.conf").write_text("passwd: files\ngroup: files\nhosts: files\n")
        (self.folder / "slurm.conf").write_text(self._config())
        (self.folder / "gres.conf").write_text(self._gpus())

    def _config(self) -> str:
        # From the clock, so that no two clusters have a job of the same number.
        config = CONFIG.format(
            first_job=int(time.time()) % 1_000_000 + 1,
            subnet=SUBNET,
            folder=self.folder,
            cred_expire=CRED_EXPIRE,
            nodes=len(self.nodes),
        )
        gres = f" Gres=gpu:{self.gpus}" if self.gpus else ""
        has = f"CPUs={self.cpus} RealMemory=4000{gres} State=UNKNOWN"
        return config + "".join(f"NodeName={node} NodeAddr={self.address(node)} {has}\n" for node in self.nodes)

    def _gpus(self) -> str:
        """GPUs by name alone; SLURM wants devices, so they are copies of /dev/null."""
        for number in range(self.gpus):
            os.mknod(self.folder / f"gpu{number}", 0o20666, os.makedev(1, 3))
        files = f"{self.folder}/gpu[0-{self.gpus - 1}]" if self.gpus > 1 else f"{self.folder}/gpu0"
        return f"NodeName=node[1-{len(self.nodes)}] Name=gpu File={files}\n" if self.gpus else ""

    def address(self, node: str) -> str:
        return f"{SUBNET}.{10 + int(node.removeprefix('node'))}"

    def _munged(self) -> list[str]:
        files = {"key-file": "munge.key", "socket": "munge.sock", "pid-file": "munged.pid", "seed-file": "munge.seed"}
        named = [f"--{name}={self.folder / file}" for name, file in files.items()]
        return ["munged", "--foreground", "--force", f"--log-file={self.folder / 'munged.log'}", *named]

    def _control(self) -> None:
        """The controller's network, in which the nodes' cables end."""
        bridge = "ip link add bridge type bridge && ip link set bridge up"
        self._space("control", [], f"{bridge} && ip addr add {SUBNET}.1/24 dev bridge")

    def _boot(self, node: str) -> None:
        """A node that is on, and connected."""
        self._space(node, ["--pid", "--fork", "--kill-child", "--mount-proc"], "true")
        pid = str(self._inside[node].pid)
        self._ip("link", "add", f"to-{node}", "type", "veth", "peer", "name", "eth0", "netns", pid)
        self._ip("link", "set", f"to-{node}", "master", "bridge", "up")
        enter = ["nsenter", "--target", pid, "--net", "ip"]
        for words in (f"addr add {self.address(node)}/24 dev eth0", "link set eth0 up"):
            subprocess.run([*enter, *words.split()], check=True)

    def _space(self, name: str, more: Sequence[str], prepare: str) -> None:
        """A machine without programs: a process that holds the namespaces open, the first one there is in them."""
        ready = self.folder / f"{name}.ready"
        ready.unlink(missing_ok=True)
        mounts = " && ".join(f"mount --bind {self.folder}/{file} /etc/{file}" for file in ("hosts", "nsswitch.conf"))
        begin = f"hostname {name} && {mounts} && ip link set lo up && {prepare} && touch {ready}"
        # As process 1 it has to wait for the orphans of its machine.
        stay = "while :; do sleep 3600 & wait; done" if more else "exec sleep infinity"
        hold = f"{begin} || exit 1; {stay}"
        spaces = ["unshare", "--net", "--uts", "--mount", "--propagation", "slave", *more, "--", "bash", "-c", hold]
        started = self._start(name, *spaces)
        until(ready.exists, lambda: f"{name}: {(self.folder / f'{name}.out').read_text()}")
        (self._inside[name],) = started.children() if "--fork" in more else [psutil.Process(started.pid)]

    def entering(self, name: str) -> list[str]:
        """The words in front of a command that is to run there."""
        pid = str(self._inside[name].pid)
        process_too = [] if name == "control" else ["--pid"]
        return ["nsenter", "--target", pid, "--net", "--uts", "--mount", *process_too, f"--wdns={Path.cwd()}", "--"]

    def _ip(self, *words: str) -> None:
        subprocess.run([*self.entering("control"), "ip", *words], check=True)

    def _start(self, name: str, *words: str) -> psutil.Popen:
        """Start a daemon, which does not outlive this process."""
        with (self.folder / f"{name}.out").open("ab") as out:
            started = psutil.Popen(
                ["setpriv", "--pdeathsig", "KILL", "--", *words],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env={**self.environment, "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LANG": "C.UTF-8"},
                start_new_session=True,
            )
        self._started[name] = started
        return started

    def _unwell(self, nodes: Sequence[str]) -> str:
        shown = "\n".join(self.run(*words.split()).stdout for words in ("squeue", "scontrol show node"))
        return f"idle nodes: { {node: self.node_state(node) for node in nodes} }\n{shown}\n{self.logs(10)}"


def until(holds: Callable[[], bool], what: str | Callable[[], str], timeout: float = 60, pause: float = 0.02) -> None:
    """Wait until it holds; after `timeout` seconds an AssertionError says what was waited for."""
    end = time.monotonic() + timeout
    while not holds():
        if time.monotonic() > end:
            raise AssertionError(f"after {timeout} s still waiting for {what if isinstance(what, str) else what()}")
        time.sleep(pause)
