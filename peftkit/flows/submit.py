"""`peftkit submit`: a run into SLURM's queue, from its settings to the job's number."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from filelock import FileLock

from peftkit.atomic import write_whole
from peftkit.cache import cache_root
from peftkit.config.read import differences, load, write
from peftkit.config.run import Run
from peftkit.config.trust import remember
from peftkit.engine.ds_config import Plan, fill, read_config
from peftkit.errors import ConfigError
from peftkit.flows.follow import follow
from peftkit.flows.out import default_folder, named_folder
from peftkit.run_folder import RunFolder
from peftkit.slurm.ledger import Entry, enter
from peftkit.slurm.script import Place, sbatch_script
from peftkit.slurm.states import merged
from peftkit.slurm.submit import Record, cancel, find, new_token, read_record, refusal, write_record
from peftkit.slurm.submit import submit as send
from peftkit.slurm.verdict import attempts
from peftkit.status import read_status

DATA_FILES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".txt", ".conll", ".gz", ".zst", ".gguf")


@dataclass(frozen=True)
class Submitted:
    """What came of it."""

    folder: Path
    job: str
    how: Literal["new", "same", "done"]
    """A new job; one that was there already; none, because the run is done."""
    then: list[str] = field(default_factory=list)
    """The jobs of the commands that follow it."""


def submit(run: Run) -> Submitted:
    """Queue the run, or find the job that it has. ConfigError names all that is wrong before SLURM is asked."""
    check(run)
    need_slurm()
    folder = RunFolder(place_of(run))
    run = run.model_copy(update={"out": folder.path, "resume": False})
    try:
        folder.slurm.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise ConfigError(f"--out {folder.path} cannot be made ({problem.strerror}); name a folder elsewhere") from None
    with alone(folder):
        found = there_already(run, folder) or _submit(run, folder)
        return replace(found, then=follow(run, folder, read_record(folder), found.how == "done"))


def need_slurm() -> None:
    """ConfigError if there is none on this machine."""
    if shutil.which("sbatch") is None:
        raise ConfigError(
            "sbatch is not installed on this machine: submit where SLURM is; --dry-run shows the script anywhere"
        )


def _submit(run: Run, folder: RunFolder) -> Submitted:
    record = Record(new_token(), submitted=time.time(), script=folder.script.name)
    write_whole(folder.submitted, write(run))
    remember(run)
    write_whole(folder.script, script_of(run, folder, record.token))
    folder.stop.unlink(missing_ok=True)  # of an earlier time
    record = send(folder, record)
    if why := refusal(record.job, run.slurm.partition):
        cancel(record.job)
        raise ConfigError(f"SLURM took job {record.job}, but {why}; the job is cancelled")
    enter(Entry(record.job, str(folder.path)))
    return Submitted(folder.path, record.job, "new")


def preview(run: Run) -> str:
    """The script that `submit` would send; nothing is written, and no SLURM is needed."""
    check(run)
    folder = run.out.absolute() if run.out is not None else default_folder(run).absolute()
    return script_of(run, RunFolder(folder))


def script_of(run: Run, folder: RunFolder, token: str = "") -> str:
    """The text of the script."""
    return sbatch_script(run.slurm, Place(folder.path, Path.cwd(), sys.executable, token, first_attempt(folder)))


def first_attempt(folder: RunFolder) -> int:
    """The number of the run's next attempt: some failed before they had a status."""
    status = read_status(folder.status)
    return max([status.attempt if status else -1, *(int(row["attempt"]) for row in attempts(folder))]) + 1


def place_of(run: Run) -> Path:
    """The run's folder. Without --out, the one in which the same run waits or runs already, else a new one."""
    if run.out is not None:
        return run.out.absolute()
    named, number = named_folder(run), 1
    folder = named
    while folder.exists():
        path = folder.absolute()
        if not changed(run, RunFolder(path)) and there_already(run, RunFolder(path), done=False):
            return path
        number += 1
        folder = named.with_name(f"{named.name}-{number}")
    return default_folder(run).absolute()


def changed(run: Run, folder: RunFolder) -> set[str]:
    """Settings of which neither what was submitted nor what came of it when it began (auto is a number then) says the same."""
    known = [load(file) for file in (folder.submitted, folder.config) if file.is_file()]
    found = [{name for name, _, _ in differences(one, run)} for one in known]
    return set.intersection(*found) - {"out", "resume"} if found else {"out"}


def there_already(run: Run, folder: RunFolder, done: bool = True) -> Submitted | None:
    """The job that the run has, or its end, if there is no need of another one."""
    record, status = read_record(folder), read_status(folder.status)
    job = find(record, folder) if record else None
    state = merged(job, status).state
    if record and job and not record.job:  # sbatch's answer was lost
        write_record(folder, replace(record, job=job.array))
        enter(Entry(job.array, str(folder.path)))
    if job and job.phase != "ended":  # a word of SLURM's that is not known here is no end
        if other := changed(run, folder):
            raise ConfigError(
                f"{folder.path} has job {job.id} ({state}), which was submitted with another --{', --'.join(sorted(other))};"
                f" peftkit cancel {folder.path} ends it, or name another --out"
            )
        return Submitted(folder.path, job.id, "same")
    if done and is_done(run, folder):
        return Submitted(folder.path, record.job if record else "", "done")
    if status and not status.job and state in ("starting", "running"):
        raise ConfigError(
            f"{folder.path} is being trained now, on {status.host} without SLURM; touch {folder.stop} stops it"
        )
    return None


def is_done(run: Run, folder: RunFolder) -> bool:
    """Whether the run has come to its end, and is asked for no other one."""
    status, known = read_status(folder.status), folder.config if folder.config.is_file() else folder.submitted
    if not status or status.state != "done":
        return False
    other = {name for name, _, _ in differences(load(known), run)} if known.is_file() else set()
    return not other & {"steps", "epochs"}


def check(run: Run) -> None:
    """What can be known of the run before it has its nodes, all at once."""
    problems = [*run.problems(), *absent(run), *unsplittable(run)]
    if run.out is not None and "\\" in str(run.out):
        problems.append(f"--out {run.out}: SLURM cannot write a log to a path that has a backslash in it")
    if problems:
        raise ConfigError(problems)


def absent(run: Run) -> Iterator[str]:
    """Files and folders of this machine that are not there: the job would find out hours later."""
    sources = {"model": run.model.path, "model.tokenizer": run.model.tokenizer, "eval.anchor": run.eval.anchor}
    sources |= {f"data.{name}": getattr(run.data, name) for name in ("train", "validation", "test")}
    sources |= {f"data.mixture.{number}": source.path for number, source in enumerate(run.data.mixture)}
    for name, value in sources.items():
        if value and "://" not in value and _is_path(value) and not Path(value).expanduser().exists():
            yield f"--{name} {value} is not there"


def _is_path(value: str) -> bool:
    return value.startswith(("/", "./", "../", "~")) or Path(value).suffix in DATA_FILES


def unsplittable(run: Run) -> Iterator[str]:
    """A batch, or a DeepSpeed configuration, that so many processes cannot take."""
    slurm = run.slurm
    precision = run.precision if run.precision != "auto" else "bf16" if slurm.gpus_per_node else "fp32"
    processes = slurm.nodes * slurm.processes
    try:
        nvme = cache_root(run.data.cache) / "nvme"
        plan = Plan(run.batch.total, run.batch.rows, processes, precision, run.optim, nvme)
        fill(read_config(run.deepspeed), plan)
    except ConfigError as problem:
        yield from problem.problems


@contextmanager
def alone(folder: RunFolder) -> Iterator[None]:
    """One submission of a run at a time: the second one waits, and then finds the first one's job."""
    with FileLock(folder.slurm / "lock", timeout=300):
        yield
