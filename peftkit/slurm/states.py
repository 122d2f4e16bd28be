"""Where a job is: squeue, scontrol, sacct or the run's own status, whichever knows.

Each of them forgets, lags or is absent somewhere: squeue and scontrol lose a job minutes after its end, sacct needs a database and
runs late, and the controller may be away. So what none of them knows is unknown, which is not failed.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from peftkit.slurm.ask import Said, ask
from peftkit.status import Status

Phase = Literal["waiting", "running", "ended", "unknown"]
State = Literal["waiting", "starting", "running", "stopped", "done", "failed", "cancelled", "unknown"]
Ask = Callable[..., Said]

PHASES: Mapping[Phase, str] = {
    "waiting": "PENDING CONFIGURING REQUEUED REQUEUE_FED REQUEUE_HOLD RESV_DEL_HOLD SPECIAL_EXIT",
    "running": "RUNNING COMPLETING SUSPENDED STOPPED RESIZING SIGNALING STAGE_OUT",
    "ended": "COMPLETED FAILED CANCELLED TIMEOUT NODE_FAIL OUT_OF_MEMORY PREEMPTED DEADLINE BOOT_FAIL REVOKED",
}
FINAL = ("stopped", "done", "failed")
GRACE = 300
"""Seconds without a word after which a run of which no job is known counts as lost. Loading a model says nothing for minutes."""

SQUEUE = (
    "JobArrayID",
    "JobID",
    "State",
    "Reason",
    "TimeLeft",
    "StartTime",
    "EndTime",
    "NodeList",
    "RestartCnt",
    "exit_code",
)
SQUEUE_FREE = ("Dependency", "Name", "Comment")
"""Fields that may hold anything come last."""
SACCT = ("JobID", "JobIDRaw", "State", "ExitCode", "Start", "End", "NodeList", "JobName")
EMPTY = ("", "(null)", "N/A", "None", "Unknown", "None assigned")


@dataclass(frozen=True)
class Job:
    """A job, or a task of an array, as SLURM tells it."""

    id: str
    """`123`, or `123_4` of an array."""
    state: str = ""
    """SLURM's own word, such as NODE_FAIL; nothing where it is not known."""
    reason: str = ""
    raw: str = ""
    """The number that the job itself sees as SLURM_JOB_ID."""
    name: str = ""
    comment: str = ""
    nodes: str = ""
    dependency: str = ""
    restarts: int = 0
    left: int | None = None
    """Seconds until its time limit."""
    starts: float | None = None
    """When it began, or is expected to."""
    ends: float | None = None
    exit_code: int = 0
    signal: int = 0
    source: str = ""

    @property
    def phase(self) -> Phase:
        """Waiting, running or ended; a word that this version of peftkit does not know is unknown."""
        return next((phase for phase, words in PHASES.items() if self.state in words.split()), "unknown")

    @property
    def array(self) -> str:
        """The job's number without the task's."""
        return self.id.partition("_")[0]


@dataclass(frozen=True)
class Answer:
    """The jobs that are known, by id, and whether anyone could be asked."""

    jobs: dict[str, Job] = field(default_factory=dict)
    heard: bool = False
    """Whether the controller answered, if only that it knows no such job."""
    problem: str = ""

    def of(self, job: str) -> list[Job]:
        """The job, or all known tasks of the array with that number."""
        return [one for one in self.jobs.values() if job in (one.id, one.array)]


def look(jobs: Sequence[str], ask: Ask = ask) -> Answer:
    """What SLURM knows of these jobs."""
    if not jobs:
        return Answer()
    said = ask(*squeue_words(), f"--jobs={','.join(jobs)}")
    heard = _answers(said)
    found = {job.id: job for job in read_squeue(said.out)}
    # Both ask the controller; the other one helps where squeue is wrapped by the site, or prints another form.
    if not said.is_away and not found and (not heard or said.out.strip()):
        shown = [ask("scontrol", "--oneliner", "show", "job", job) for job in jobs]
        heard = heard or all(map(_answers, shown))
        found = {job.id: job for one in shown for job in read_scontrol(one.out)}
    if left := _missing(jobs, found):
        found |= {job.id: job for job in _from_accounting(left, heard, ask)}
    return Answer(found, heard, "" if heard else said.complaint)


def _answers(said: Said) -> bool:
    """Whether it is the controller's word; any other complaint says nothing of a job."""
    return said.code == 0 or "invalid job id" in said.err.lower()


def mine(user: str, ask: Ask = ask) -> Answer:
    """All jobs of the user that the controller remembers."""
    said = ask(*squeue_words(), f"--user={user}")
    heard = said.code == 0
    return Answer({job.id: job for job in read_squeue(said.out)}, heard, "" if heard else said.complaint)


def squeue_words() -> list[str]:
    """One line a task, the fields as wide as they are."""
    fields = ",".join(f"{name}:|" for name in (*SQUEUE, *SQUEUE_FREE))
    return ["squeue", "--noheader", "--array", "--states=all", f"--Format={fields}"]


def read_squeue(text: str) -> Iterator[Job]:
    """The jobs in what `squeue_words` prints. A line of another form is passed over."""
    for line in text.splitlines():
        parts = line.removesuffix("|").split("|", len(SQUEUE) + len(SQUEUE_FREE) - 1)
        if len(parts) != len(SQUEUE) + len(SQUEUE_FREE) or not parts[1].isdigit():
            continue
        told = {name: _filled(part) for name, part in zip((*SQUEUE, *SQUEUE_FREE), parts, strict=True)}
        status = _number(told["exit_code"])
        yield Job(
            id=told["JobArrayID"], raw=told["JobID"], state=told["State"], reason=told["Reason"],
            name=told["Name"], comment=told["Comment"], nodes=told["NodeList"], dependency=told["Dependency"],
            restarts=_number(told["RestartCnt"]), left=seconds(told["TimeLeft"]),
            starts=moment(told["StartTime"]), ends=moment(told["EndTime"]),
            # As wait(2) tells it: the code in the upper byte, the signal in the lower.
            exit_code=status >> 8, signal=status & 0x7F, source="squeue",
        )  # fmt: skip


def read_scontrol(text: str) -> Iterator[Job]:
    """The jobs in what `scontrol --oneliner show job` prints."""
    for line in text.splitlines():
        told = {name: _filled(value) for name, value in PAIR.findall(line)}
        if not told.get("JobId", "").isdigit():
            continue
        code, signal = _codes(told.get("ExitCode", ""))
        task = told.get("ArrayTaskId", "")
        yield Job(
            id=f"{told.get('ArrayJobId', told['JobId'])}_{task}" if task.isdigit() else told["JobId"],
            raw=told["JobId"], state=told.get("JobState", ""), reason=told.get("Reason", "").replace(",_", ", "),
            name=told.get("JobName", ""), comment=told.get("Comment", ""), nodes=told.get("NodeList", ""),
            dependency=told.get("Dependency", ""), restarts=_number(told.get("Restarts", "")), left=_left(told),
            starts=moment(told.get("StartTime", "")), ends=moment(told.get("EndTime", "")),
            exit_code=code, signal=signal, source="scontrol",
        )  # fmt: skip


PAIR = re.compile(r"(?:^|(?<= ))([A-Za-z][\w/:]*)=(.*?)(?= +[A-Za-z][\w/:]*=|\s*$)")
"""A name and its value: values hold spaces (a job's name) and `=` (TRES=cpu=1)."""


def read_sacct(text: str, source: str = "sacct") -> Iterator[Job]:
    """The jobs in what `sacct --allocations --parsable2 --noheader --format=...` prints of the fields SACCT."""
    for line in text.splitlines():
        parts = line.split("|", len(SACCT) - 1)
        if len(parts) != len(SACCT) or not parts[1].isdigit():
            continue
        told = {name: _filled(part) for name, part in zip(SACCT, parts, strict=True)}
        state, _, by = told["State"].partition(" by ")
        code, signal = _codes(told["ExitCode"])
        yield Job(
            id=told["JobID"], raw=told["JobIDRaw"], state=state, reason=f"by {by}" if by else "",
            name=told["JobName"], nodes=told["NodeList"], starts=moment(told["Start"]), ends=moment(told["End"]),
            exit_code=code, signal=signal, source=source,
        )  # fmt: skip


def _from_accounting(jobs: Sequence[str], heard: bool, ask: Ask) -> Iterator[Job]:
    words = ("--allocations", "--parsable2", "--noheader", f"--format={','.join(SACCT)}")
    known = set()
    for job in read_sacct(ask("sacct", *words, f"--jobs={','.join(jobs)}").out):
        # The database runs late: what it calls running while the controller knows no such job has ended or never began.
        if job.phase == "ended" or not heard:
            known.add(job.id)
            yield job
    # Where only a file of finished jobs is kept. It has no tasks of arrays, and an attempt that was followed by another stands
    # in it like a job's end: so only of jobs that the controller has forgotten.
    left = [job for job in _missing(jobs, known) if job.isdigit()]
    if heard and left:
        told = read_sacct(ask("sacct", "--completion", *words, f"--jobs={','.join(left)}").out, "sacct -c")
        yield from (job for job in told if job.phase == "ended" and job.id in left)


def _missing(jobs: Iterable[str], found: Iterable[str]) -> list[str]:
    known = set(found) | {job.partition("_")[0] for job in found}
    return [job for job in jobs if job not in known]


@dataclass(frozen=True)
class JobState:
    """A run's state, from its job and its own status together."""

    state: State
    job: Job | None = None
    status: Status | None = None
    is_over: bool = False
    """Whether nothing more will come of it: a run that has saved and stopped may be about to be put back into the queue."""


def merged(
    job: Job | None, status: Status | None, heard: bool = True, first: int = 0, now: float | None = None
) -> JobState:
    """One state of what SLURM and the run say. A run that says it is done is done, whatever its exit code was.

    Without a job (none was submitted, or nobody remembers it) the run's own word holds; one that has not spoken for GRACE
    seconds in the middle of its work is unknown. `heard` is False if SLURM could not be asked; `first` is the run's
    attempt with which this job began.
    """
    now = time.time() if now is None else now
    phase = job.phase if job else "unknown"
    if job and phase == "waiting":
        return JobState("waiting", job, status)
    if job and phase == "running":
        return JobState(status.state if status and _is_of(status, job, first) else "starting", job, status)
    if job and phase == "ended":
        return JobState(_at_the_end(job, status, first), job, status, is_over=True)
    speaks = status and (status.state in FINAL or now - status.updated <= GRACE)
    state: State = status.state if status and speaks else "unknown"
    return JobState(state, job, status, is_over=state == "done" or (heard and state in FINAL))


def by_exit(job: Job | None) -> JobState:
    """The state of a job that keeps no status: a command such as an export, whose exit code is its word."""
    phase = job.phase if job else "unknown"
    ended: Mapping[str, State] = {"COMPLETED": "done", "CANCELLED": "cancelled"}
    states: Mapping[Phase, State] = {"waiting": "waiting", "running": "running", "unknown": "unknown"}
    state = states.get(phase) or ended.get(job.state if job else "", "failed")
    return JobState(state, job, is_over=phase == "ended")


def _at_the_end(job: Job, status: Status | None, first: int) -> State:
    if status and (status.state == "done" or (status.state in FINAL and _is_of(status, job, first))):
        return status.state
    # What was saved by an attempt before stays saved when the job is cancelled while it waits for its turn.
    if job.state == "CANCELLED":
        return "stopped" if status and status.state == "stopped" else "cancelled"
    return "failed"


def _is_of(status: Status, job: Job, first: int) -> bool:
    """Whether it is the job's present attempt that says so; what an earlier one left says nothing of this one."""
    return (not status.job or not job.raw or status.job == job.raw) and status.attempt >= first + job.restarts


def seconds(text: str) -> int | None:
    """`1-02:03:04`, `02:03:04`, `03:04` -> seconds; None for UNLIMITED, INVALID and the like."""
    days, _, clock = text.rpartition("-")
    parts = clock.split(":")
    if not all(part.isdigit() for part in (*parts, days or "0")):
        return None
    total = 0
    for part in parts:
        total = total * 60 + int(part)
    return total + 86400 * int(days or 0)


def moment(text: str) -> float | None:
    """`2026-11-25T22:57:20`, in the machine's own time, -> epoch seconds; None if there is none."""
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return None


def _left(told: Mapping[str, str]) -> int | None:
    limit, gone = seconds(told.get("TimeLimit", "")), seconds(told.get("RunTime", ""))
    return None if limit is None or gone is None else limit - gone


def _codes(text: str) -> tuple[int, int]:
    """`3:0` -> exit code 3, signal 0."""
    code, _, signal = text.partition(":")
    return _number(code), _number(signal)


def _number(text: str) -> int:
    return int(text) if text.isdigit() else 0


def _filled(text: str) -> str:
    return "" if text.strip() in EMPTY else text.strip()
