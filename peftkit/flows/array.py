"""`peftkit submit --array`: a run for every combination of settings, each a task of one array job with a folder of its own."""

from __future__ import annotations

import hashlib
import json
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

from peftkit.atomic import write_whole
from peftkit.config.read import read, write
from peftkit.config.run import Run
from peftkit.config.trust import remember
from peftkit.errors import ConfigError
from peftkit.flows.out import named_folder
from peftkit.flows.submit import Submitted, alone, changed, check, first_attempt, is_done, need_slurm
from peftkit.run_folder import RunFolder
from peftkit.slurm.ledger import Entry, enter
from peftkit.slurm.script import Place, sbatch_script
from peftkit.slurm.states import look
from peftkit.slurm.submit import Record, cancel, find, new_token, read_record, refusal, write_record
from peftkit.slurm.submit import submit as send

MOST = 1000
"""Runs of an array; SLURM's own limit (MaxArraySize) is 1001 where nobody set it."""


def submit_array(run: Run) -> Submitted:
    """Queue all runs that are not done, or find the array job that they have."""
    runs = combinations(run)
    need_slurm()
    folder = RunFolder(array_folder(run))
    folder.slurm.mkdir(parents=True, exist_ok=True)
    with alone(folder):
        return there_already(run, folder) or _submit(run, folder, runs)


def preview_array(run: Run) -> str:
    """The script that would be sent."""
    return array_script(run, RunFolder(array_folder(run)), combinations(run))


def combinations(run: Run) -> list[Run]:
    """The runs, in the order of the settings' values. ConfigError names all that is wrong with any of them."""
    values = [[(name, value) for value in values] for name, values in run.slurm.array.items()]
    wanted = list(product(*values))
    if len(wanted) > MOST:
        raise ConfigError(f"--slurm.array makes {len(wanted)} runs; at most {MOST} at a time")
    runs, problems = [], []
    for number, chosen in enumerate(wanted):
        try:
            runs.append(_one(run, number, chosen))
        except ConfigError as problem:
            problems += [f"with {_called(chosen)}: {one}" for one in problem.problems]
    if problems:
        raise ConfigError(problems)
    return runs


def _one(run: Run, number: int, chosen: tuple[tuple[str, Any], ...]) -> Run:
    """The run with these values, in a folder that is named by them."""
    out = array_folder(run) / f"{number:03}-{re.sub(r'[^A-Za-z0-9._=+-]+', '-', _called(chosen))[:80].strip('-')}"
    base = run.model_dump(mode="json")
    base |= {"out": str(out), "resume": False, "slurm": base["slurm"] | {"array": {}, "array_limit": None}}
    one = read([word for name, value in chosen for word in (f"--{name}", _word(value))], base)
    check(one)
    return one


def _word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _called(chosen: tuple[tuple[str, Any], ...]) -> str:
    """`lr=0.0001-seed=1`"""
    return "-".join(f"{name.rpartition('.')[2]}={_word(value)}" for name, value in chosen)


def array_folder(run: Run) -> Path:
    """Where the runs' folders are. Without --out it hangs on the settings alone: the same array has the same place."""
    if run.out is not None:
        return run.out.absolute()
    digest = hashlib.sha256(write(run).encode()).hexdigest()[:6]
    base = named_folder(run)
    return base.with_name(f"{base.name}-array-{digest}").absolute()


def there_already(run: Run, folder: RunFolder) -> Submitted | None:
    """The array job of these runs, if a task of it waits or runs. PeftkitError if nobody is there to ask."""
    record = read_record(folder)
    known = find(record) if record else None
    jobs = look([known.array]).of(known.array) if known else []
    if record and known and not record.job:  # sbatch's answer was lost
        record = replace(record, job=known.array)
        write_record(folder, record)
        _enter(record, folder, combinations(run), [int(task) for job in jobs if (task := job.id.partition("_")[2])])
    if not known or all(job.phase == "ended" for job in jobs):
        return None
    if other := changed(run, folder):
        raise ConfigError(
            f"{folder.path} has job {known.array}, which was submitted with another --{', --'.join(sorted(other))};"
            f" peftkit cancel {known.array} ends it, or name another --out"
        )
    return Submitted(folder.path, known.array, "same")


def _submit(run: Run, folder: RunFolder, runs: list[Run]) -> Submitted:
    left = list(_left(runs))
    if not left:
        return Submitted(folder.path, "", "done")
    record = Record(new_token(), submitted=time.time(), script=folder.script.name)
    write_whole(folder.submitted, write(run))
    remember(run)
    for one in runs:
        own = _folder(one)
        own.slurm.mkdir(parents=True, exist_ok=True)
        own.stop.unlink(missing_ok=True)
        write_whole(own.submitted, write(one))
        remember(one)
    write_whole(folder.script, array_script(run, folder, runs, record.token))
    record = send(folder, record)
    _enter(record, folder, runs, left)
    if why := refusal(record.job, run.slurm.partition):
        cancel(record.job)
        raise ConfigError(f"SLURM took job {record.job}, but {why}; the job is cancelled")
    return Submitted(folder.path, record.job, "new")


def _enter(record: Record, folder: RunFolder, runs: list[Run], tasks: list[int]) -> None:
    """Write down, for each of these tasks and for the user, what the job's number is."""
    for number in tasks:
        write_record(_folder(runs[number]), replace(record, job=f"{record.job}_{number}", script=""))
    enter(Entry(record.job, str(folder.path), tasks=tuple(str(one.out) for one in runs)))


def array_script(run: Run, folder: RunFolder, runs: list[Run], token: str = "") -> str:
    """The script for all runs that are not done."""
    numbers = ",".join(map(str, _left(runs)))
    limit = f"%{run.slurm.array_limit}" if run.slurm.array_limit else ""
    tasks = tuple((_folder(one).path, first_attempt(_folder(one))) for one in runs)
    place = Place(folder.path, Path.cwd(), sys.executable, token, tasks=tasks)
    return sbatch_script(run.slurm, place, f"--array={numbers}{limit}")


def _left(runs: list[Run]) -> Iterator[int]:
    """The numbers of those that are not done."""
    for number, one in enumerate(runs):
        if not is_done(one, _folder(one)):
            yield number


def _folder(one: Run) -> RunFolder:
    return RunFolder(Path(str(one.out)))
