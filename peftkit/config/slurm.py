"""What `peftkit submit` asks a SLURM cluster for. A training by itself reads none of it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, NonNegativeInt, PositiveInt
from pydantic_core import PydanticCustomError

from peftkit.config.section import Section
from peftkit.redact import NAMES as SECRET_NAMES

EXAMPLES = "a time such as 4h, 90m, 1d12h, 04:00:00 or 1-12:00:00; a number by itself is minutes, as SLURM reads it"
LETTERS = {"d": 86400, "h": 3600, "m": 60, "s": 1}
CLOCK = re.compile(r"(?:(?P<days>\d+)-)?(?P<hours>\d+):(?P<minutes>[0-5]?\d):(?P<seconds>[0-5]?\d)")
MEMORY = re.compile(r"\d+[KMGT]?")
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
OURS = {
    "array": "ask for --array '{SETTING: [VALUES]}'", "chdir": "--data and --out say where things lie",
    "error": "RUN/slurm has the log", "export": "--environment and --keep say what goes along",
    "gpus": "ask for --gpus-per-node", "gpus-per-task": "with it a process sees no GPU but its own: ask for --gpus-per-node",
    "no-requeue": "--max-requeues 0 puts no failed job back", "ntasks": "each node has one task: ask for --nodes",
    "ntasks-per-node": "each node has one task: ask for --processes-per-node", "open-mode": "the log is added to",
    "output": "RUN/slurm has the log", "requeue": "a job is always put back when its time is over",
    "signal": "ask for --signal-seconds", "wrap": "what runs is the training",
}  # fmt: skip
"""Options of sbatch that the script depends on, and what stands for them."""
SHORT = {"a": "array", "D": "chdir", "e": "error", "G": "gpus", "n": "ntasks", "o": "output"}


def time_limit(value: Any) -> Any:
    """
    >>> time_limit("4h"), time_limit("1d12h"), time_limit(90), time_limit("0-04:00:00")
    ('04:00:00', '1-12:00:00', '01:30:00', '04:00:00')
    """
    if value is None:
        return None
    seconds = _seconds(str(value).strip())
    if not seconds:
        raise PydanticCustomError("value_error", "{text}", {"text": f"takes {EXAMPLES}; got {value}"})
    days, rest = divmod(seconds, 86400)
    clock = f"{rest // 3600:02}:{rest // 60 % 60:02}:{rest % 60:02}"
    return f"{days}-{clock}" if days else clock


def _seconds(text: str) -> int:
    """0 for what is no time. `4:30` is none: to SLURM it is minutes and seconds, to most people hours."""
    if text.isdecimal():
        return int(text) * 60
    if re.fullmatch(r"(\d+[dhms])+", text):
        return sum(int(number) * LETTERS[letter] for number, letter in re.findall(r"(\d+)([dhms])", text))
    if found := CLOCK.fullmatch(text):
        days, hours, minutes, seconds = (int(found[name] or 0) for name in ("days", "hours", "minutes", "seconds"))
        return days * 86400 + hours * 3600 + minutes * 60 + seconds
    return 0


class Slurm(Section):
    """What a job asks SLURM for, and what its nodes need before peftkit runs on them."""

    nodes: PositiveInt = 1
    """Nodes of the job."""
    gpus_per_node: NonNegativeInt = 1
    """GPUs on each of them; 0 trains on their processors."""
    gpu_type: str | None = None
    """The kind of GPU, by the cluster's name for it (a100, h100, ...)."""
    processes_per_node: PositiveInt | None = None
    """Training processes on each node; left out: one for each GPU, or one."""
    cpus_per_task: PositiveInt | None = None
    """Cores of each node, for all of its processes; left out: four for each process."""
    mem: str | None = None
    """Main memory of each node: 64G, or 0 for all that it has; left out: the partition's default."""
    time: Annotated[str | None, BeforeValidator(time_limit)] = None
    """The job's time limit: 4h, 90m, 1-12:00:00, or minutes; left out: the partition's. A longer training takes several turns."""
    partition: str | None = None
    """The partition; several with commas between them."""
    account: str | None = None
    """The account that pays."""
    qos: str | None = None
    """The quality of service."""
    constraint: str | None = None
    """Features that the nodes must have, such as 'a100&nvlink'."""
    nodelist: str | None = None
    """Nodes that the job must have."""
    exclude: str | None = None
    """Nodes that the job must not have."""
    reservation: str | None = None
    """A reservation to run in."""
    exclusive: bool = False
    """Whether no other job may run on the nodes."""
    job_name: str | None = None
    """What squeue calls the job; left out: the name of the run's folder."""
    mail: str | None = None
    """An address that SLURM writes to when the job ends or fails."""
    sbatch: list[str] = []
    """Other options of sbatch, as one writes them: ["--licenses=x", "--tmp=100G"]."""
    modules: list[str] = []
    """Environment modules to load on the nodes, in order."""
    conda: str | None = None
    """A conda environment to activate on the nodes, by name or path."""
    venv: str | None = None
    """A virtual environment to activate on the nodes, by its folder."""
    python: str | None = None
    """The Python that runs peftkit on the nodes; left out: the environment's, or without one the Python that submits."""
    container: str | None = None
    """An image in which peftkit runs: a .sif file or docker://NAME."""
    container_kind: Literal["apptainer", "pyxis"] = "apptainer"
    """What runs the image: apptainer (or singularity) on the nodes, or srun itself with the pyxis plug-in."""
    mounts: list[str] = []
    """Folders that the container sees, FROM:TO or PATH; the working and the run's folder always are."""
    setup: list[str] = []
    """Shell lines for the first node, whose environment the others get; they come after all else that makes it."""
    environment: dict[str, str] = {}
    """Variables for the nodes, written into the script: {NCCL_DEBUG: INFO}."""
    keep: list[str] = [
        "HF_HOME", "HF_ENDPOINT", "HF_HUB_OFFLINE", "HF_TOKEN", "PEFTKIT_CACHE", "WANDB_API_KEY", "WANDB_MODE",
        "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy",
    ]  # fmt: skip
    """Variables of the shell that submits which the job gets as they are there; their values stand in no file of the run."""
    signal_seconds: PositiveInt = 300
    """How long before its time limit a job saves and makes room for its next turn; SLURM may be up to a minute early."""
    max_requeues: NonNegativeInt = 3
    """How often in a row a job that failed without being to blame (a node died) is put back, while it gets no further."""
    then: list[str] = []
    """Commands that follow when the run is done, one after another, in jobs of their own: [eval test.jsonl, export merged]."""
    array: dict[str, list[Any]] = {}
    """Settings and the values to try: each combination is a run and a task of one array job: {optim.lr: [1e-4, 2e-4]}."""
    array_limit: PositiveInt | None = None
    """How many runs of the array may run at once."""
    preflight: bool = True
    """Try names, ports, GPUs, the shared folder and versions on all nodes before the training starts; takes seconds."""

    @property
    def seconds(self) -> int | None:
        """The time limit in seconds."""
        return _seconds(self.time) if self.time else None

    @property
    def processes(self) -> int:
        """Training processes on each node."""
        return self.processes_per_node or max(1, self.gpus_per_node)

    @property
    def cores(self) -> int:
        """Cores of each node."""
        return self.cpus_per_task or 4 * self.processes

    def conflicts(self, run: Any) -> Iterator[str]:
        yield from self._spelling()
        if self.seconds and self.signal_seconds + 60 >= self.seconds:  # SLURM may send it a minute early
            yield (
                f"--slurm.time {self.time} is over before it begins: --slurm.signal_seconds {self.signal_seconds} of it are"
                " for saving; ask for more time, or fewer seconds"
            )
        yield from self._of_processes()
        yield from self._of_software()
        yield from self._of_variables()
        yield from self._of_options()
        yield from self._of_followers()
        yield from self._of_array()

    def _spelling(self) -> Iterator[str]:
        """What would break a line of the script in two, or be another option."""
        words = ("gpu_type", "partition", "account", "qos", "constraint", "nodelist", "exclude", "reservation", "mail")
        for name, value in _texts(self):
            if any(not letter.isprintable() for letter in value):
                yield f"--slurm.{name} {value!r} has a line break or another control character in it"
            elif name in words and (not value or " " in value or value.startswith("-")):
                yield f"--slurm.{name} {value!r} is a word without spaces that does not begin with a dash"
        if self.mem is not None and not MEMORY.fullmatch(self.mem):
            yield f"--slurm.mem takes a number with K, M, G or T behind it (64G), or 0 for all of a node; got {self.mem}"

    def _of_processes(self) -> Iterator[str]:
        if self.gpus_per_node and self.processes > self.gpus_per_node:
            yield (
                f"--slurm.processes_per_node {self.processes} with --slurm.gpus_per_node {self.gpus_per_node}:"
                " each process needs a GPU of its own; ask for as many, or leave processes_per_node out"
            )
        if self.gpu_type and not self.gpus_per_node:
            yield f"--slurm.gpu_type {self.gpu_type} with --slurm.gpus_per_node 0; leave one of them out"

    def _of_software(self) -> Iterator[str]:
        given = [name for name in ("conda", "venv", "container") if getattr(self, name)]
        if len(given) > 1:
            yield f"--slurm.{' and --slurm.'.join(given)} each bring a Python; give one of them"
        if not self.container:
            for name in ("mounts", "container_kind"):
                if getattr(self, name) != type(self).model_fields[name].get_default():
                    yield f"--slurm.{name} is of a container; add --slurm.container IMAGE"

    def _of_variables(self) -> Iterator[str]:
        for where, names in (("environment", self.environment), ("keep", self.keep)):
            for name in names:
                if not NAME.fullmatch(name):
                    yield f"--slurm.{where} {name!r} is no name of a variable"
                elif name.startswith(("SLURM_", "SBATCH_", "SRUN_")):
                    yield f"--slurm.{where} {name}: SLURM sets it itself; there is a setting for what it says"
        for name in self.environment:
            if SECRET_NAMES.search(name):
                yield (
                    f"--slurm.environment {name} looks like a secret, and would stand in the script for all to read;"
                    f" export it in your shell and name it: --slurm.keep {name}"
                )

    def _of_options(self) -> Iterator[str]:
        for option in self.sbatch:
            letters = re.fullmatch(r"-(\w).*", option)
            name = (
                SHORT.get(letters[1], "") if letters else option.removeprefix("--").partition("=")[0].partition(" ")[0]
            )
            if not option.startswith("-"):
                yield f"--slurm.sbatch takes options such as --licenses=x; got {option!r}"
            elif name in OURS:
                yield f"--slurm.sbatch {option}: {OURS[name]}"
            elif name.replace("-", "_") in type(self).model_fields:
                yield f"--slurm.sbatch {option}: ask for --slurm.{name.replace('-', '_')}"

    def _of_followers(self) -> Iterator[str]:
        for command in self.then:
            try:
                words = shlex.split(command)
            except ValueError as problem:
                yield f"--slurm.then {command!r} cannot be read ({problem})"
                continue
            if not words or words[0] not in FOLLOWERS:
                ways = " or ".join(f'"{way}"' for way in FOLLOWERS.values())
                yield f"--slurm.then {command!r} is none of the commands that follow a run: {ways}; RUN is filled in"
            elif words[0] != "export" and (len(words) == 1 or words[1].startswith("-")):
                yield f"--slurm.then {command!r} names no rows: {FOLLOWERS[words[0]]}"
            elif words[0] == "predict" and "--out" not in words:
                yield f"--slurm.then {command!r} says not where the answers go: {FOLLOWERS[words[0]]}"
        if self.then and self.array:
            yield "--slurm.then with --slurm.array: it follows one run; leave one of them out"

    def _of_array(self) -> Iterator[str]:
        for name, values in self.array.items():
            if not values:
                yield f"--slurm.array.{name} has no values to try"
            elif name.startswith("slurm") or name in ("out", "resume"):
                yield f"--slurm.array.{name} cannot differ between the runs of an array"
        if self.array_limit and not self.array:
            yield "--slurm.array_limit is of an array; add --slurm.array, or leave it out"


FOLLOWERS = {
    "eval": "eval ROWS [--metrics ...]",
    "predict": "predict ROWS --out FILE",
    "export": "export NAME",
}
"""Commands that take a run that is done, and how they are written as what follows one."""


def _texts(section: Slurm) -> Iterator[tuple[str, str]]:
    """Every text in it, with its setting's name."""
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, Mapping):
            value = [*value, *value.values()]
        yield from ((name, one) for one in (value if isinstance(value, list) else [value]) if isinstance(one, str))
