"""A piece of work: a run's folder, the job that does it, and all that is known of both."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from peftkit.errors import ConfigError
from peftkit.run_folder import RunFolder
from peftkit.slurm.ask import ask as ask_slurm
from peftkit.slurm.blame import Evidence, Verdict, blame
from peftkit.slurm.ledger import JOB, Entry, entries, split
from peftkit.slurm.reasons import why
from peftkit.slurm.states import Answer, Ask, Job, JobState, by_exit, look, merged
from peftkit.slurm.submit import read_record
from peftkit.slurm.verdict import attempts
from peftkit.status import Failure, Status, first_cause, read_failures, read_status

SILENT = "SLURM does not know its job any more, and the run has said nothing for long"
TAIL = 200_000
"""Bytes at the end of a log that are looked at."""


@dataclass(frozen=True)
class Work:
    """A run (or a command that follows it), with or without a job. What it knows is of the moment when it was made."""

    entry: Entry
    job: Job | None = None
    heard: bool = True
    """Whether SLURM could be asked."""

    @property
    def folder(self) -> RunFolder:
        return RunFolder(Path(self.entry.run))

    @cached_property
    def status(self) -> Status | None:
        return read_status(self.folder.status) if self.entry.trains else None

    @cached_property
    def turns(self) -> list[dict[str, Any]]:
        """The beginnings and ends of attempts that the job's script wrote down."""
        raw = self.job.raw if self.job else ""
        rows = attempts(self.folder) if self.entry.trains and self.entry.job else []
        of = raw or (rows[-1]["job"] if rows and "_" in self.entry.job else self.entry.job)
        return [row for row in rows if row.get("job") == of]

    @cached_property
    def state(self) -> JobState:
        if not self.entry.trains:
            forgotten = not self.job and self.folder.succeeded(self.entry.job).is_file()
            return JobState("done", is_over=True) if forgotten else by_exit(self.job)
        first = min((row["attempt"] for row in self.turns), default=0)
        return merged(self.job, self.status, self.heard, first=first)

    @property
    def attempt(self) -> int:
        """The attempt that is under way, or was the last."""
        if begun := self._turn("begin"):
            return int(begun["attempt"])
        return max(self.status.attempt if self.status else 0, self.job.restarts if self.job else 0)

    @cached_property
    def failures(self) -> list[Failure]:
        """What went wrong in that attempt, the earliest first."""
        return read_failures(self.folder, self.attempt) if self.entry.trains else []

    @property
    def logs(self) -> list[Path]:
        """What the job said, and what the process said that failed first (else the first process)."""
        job = self.turns[-1]["job"] if self.turns else self.job.raw if self.job else self.entry.job
        cause = first_cause(self.failures)
        named = [Path(self.entry.log)] if self.entry.log else [self.folder.job_log(job)] if job else []
        own = [self.folder.log(cause.process if cause else 0)] if self.entry.trains else []
        return [path for path in (*named, *own) if path.is_file()]

    @cached_property
    def verdict(self) -> Verdict:
        """Who is to blame that it failed, in the last attempt."""
        ran = self.status if self.status and self.status.attempt == self.attempt else None
        log = tail(self.logs[0], start=self._turn("begin").get("log", 0)) if self.logs else ""
        ended = self._turn("end")
        failed = ended.get("verdict") == "failed" and ended["attempt"] == self.attempt
        said = (str(ended["kind"]), str(ended["why"])) if failed else None
        return blame(Evidence(ran, self.failures, self.job, log, said))

    def _turn(self, event: str) -> dict[str, Any]:
        """The last beginning or end; empty if there is none."""
        return next((row for row in reversed(self.turns) if row["event"] == event), {})

    @property
    def reason(self) -> str:
        """Why it is not running, in words; nothing while it is."""
        state = self.state.state
        if self.job and state == "waiting":
            return str(why(self.job))
        if state == "cancelled" and self.entry.cancelled:
            return self.entry.cancelled
        if state in ("failed", "cancelled", "stopped"):
            return f"{self.verdict.kind}: {self.verdict.text}" if self.verdict.kind != state else self.verdict.text
        if state == "unknown":
            return SILENT if self.heard else "SLURM gives no answer"
        return ""

    @property
    def called(self) -> str:
        """`job 12 (train, runs/a)`, or the run's folder."""
        return f"job {self.entry.job} ({self.entry.what}, {self.entry.run})" if self.entry.job else self.entry.run


def find(word: str) -> list[Entry]:
    """The run's folder, the job or the array (its tasks) that a user names.

    Raises ConfigError if it is none of them.
    """
    path = Path(word).expanduser()
    if path.is_dir():
        run, here = path.resolve(), RunFolder(path)
        known = entries()
        if arrays := [entry for entry in known if entry.tasks and Path(entry.run) == run]:
            return split(arrays[-1])
        of_it = [one for entry in known for one in split(entry) if one.trains and Path(one.run) == run]
        if not of_it and not any(file.exists() for file in (here.config, here.status, here.submitted)):
            raise ConfigError(f"{word} is no run's folder: it has neither a config.yaml nor a status.json")
        if submitted := read_record(here):  # from another machine, or another account
            of_it = of_it or [Entry(submitted.job, str(run))]
        return of_it[-1:] or [Entry("", str(run))]
    if not JOB.fullmatch(word):
        raise ConfigError(f"{word} is neither a run's folder nor a job's number; peftkit jobs lists both")
    found = [one for entry in entries() for one in split(entry) if word in (one.job, entry.job)]
    if not found:
        raise ConfigError(f"job {word} was not submitted by peftkit from this account; name the run's folder instead")
    return found


def followers(entry: Entry) -> list[Entry]:
    """The jobs that depend on this one's success, and those that depend on them, in order."""
    direct = [one for one in entries() if entry.job and one.after and one.after == entry.job.partition("_")[0]]
    return [one for follower in direct for one in (follower, *followers(follower))]


def look_at(named: Sequence[Entry], ask: Ask = ask_slurm) -> list[Work]:
    """What is known of them now."""
    alone = [one for entry in named for one in split(entry)]
    answer = look([entry.job for entry in alone if entry.job], ask)
    return list(_works(alone, answer))


def _works(named: Iterable[Entry], answer: Answer) -> Iterator[Work]:
    for entry in named:
        yield Work(entry, answer.jobs.get(entry.job), answer.heard or not entry.job)


def tail(path: Path, size: int = TAIL, start: int = 0) -> str:
    """The end of a file from a line's beginning, of what was written after `start`."""
    try:
        with path.open("rb") as file:
            end = file.seek(0, 2)
            cut = end - size > start
            file.seek(max(min(start, end), end - size))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    return text.partition("\n")[2] if cut else text
