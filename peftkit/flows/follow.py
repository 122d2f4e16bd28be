"""The jobs of the commands that follow a run (`--slurm.then`): each once, each after the one before."""

from __future__ import annotations

import getpass
import sys
from pathlib import Path

from peftkit.atomic import write_whole
from peftkit.config.run import Run
from peftkit.errors import PeftkitError
from peftkit.run_folder import RunFolder
from peftkit.slurm.chain import follower_script
from peftkit.slurm.hopeless import end_hopeless
from peftkit.slurm.ledger import Entry, enter, entries
from peftkit.slurm.script import Place
from peftkit.slurm.states import mine
from peftkit.slurm.submit import MARK, Record, number_in, sbatch, send_once
from peftkit.slurm.work import look_at

LIVING = ("waiting", "starting", "running", "done")


def follow(run: Run, folder: RunFolder, record: Record | None, done: bool = False) -> list[str]:
    """The jobs of all commands that follow; what has none gets one. A run that is `done` is waited for no more."""
    if not done and not (record and record.job):
        raise PeftkitError(
            f"the number of the job of {folder.path} is not known, so nothing can follow it; submit again"
        )
    # Of a job that failed before: what waited for that one waits in vain.
    before = [entry for entry in entries() if entry.run == str(folder.path) and not entry.trains]
    list(end_hopeless(look_at(before)))
    after = "" if done or record is None else record.job
    jobs = []
    for number, command in enumerate(run.slurm.then, start=1):
        token = f"{record.token if record else folder.path.name}.{number}"
        # What followed a run that is done was submitted while that had a job.
        afters = {after, record.job} if number == 1 and done and record else {after}
        after = _there(folder, command, afters, token) or _submit(run, folder, command, after, token)
        jobs.append(after)
    return jobs


def _there(folder: RunFolder, command: str, afters: set[str], token: str) -> str:
    """The job that the command has already, if it was not in vain."""
    of_it = [one for one in entries() if (one.run, one.what) == (str(folder.path), command) and one.after in afters]
    living = [work for work in look_at(of_it) if work.state.state in LIVING]
    return living[-1].entry.job if living else _queued(token)


def _queued(token: str) -> str:
    """A job whose number never arrived; SLURM has its token. PeftkitError if nobody is there to ask."""
    answer = mine(getpass.getuser())
    if not answer.heard:
        raise PeftkitError(f"SLURM's controller does not answer ({answer.problem}); submit again to add what follows")
    found = [job for job in answer.jobs.values() if job.comment == f"{MARK}{token}" and job.phase != "ended"]
    return found[-1].id if found else ""


def _submit(run: Run, folder: RunFolder, command: str, after: str, token: str) -> str:
    script = folder.follower(token.rpartition(".")[2], command)
    place = Place(folder.path, Path.cwd(), sys.executable, token)
    write_whole(script, follower_script(run.slurm, place, command, after))
    job = _send(script, token, command, after)
    enter(Entry(job, str(folder.path), command, after=after))
    return job


def _send(script: Path, token: str, command: str, after: str) -> str:
    said = send_once(script, sbatch, lambda: _queued(token))
    if said.code == 0:
        return number_in(said)[0]
    before = f"job {after} is in the queue, but " if after else ""
    raise PeftkitError(f"{before}SLURM took no job for {command!r} ({said.complaint}); submit again to add it")
