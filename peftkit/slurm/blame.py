"""Who is to blame that a run failed: one verdict from its own status, every process's error file, its job and its log.

The first cause counts, not the last: when one process fails, the others fail after it, the launcher ends them, and srun reports
whichever it heard of. A run without SLURM is judged by the same files.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from peftkit.slurm.states import Job
from peftkit.status import CONSEQUENCES, Failure, Status, first_cause

Kind = Literal[
    "settings", "data", "model", "code", "memory", "disk", "nonfinite", "checkpoint", "export",
    "node", "time limit", "preempted", "cancelled", "stopped", "peer", "unknown",
]  # fmt: skip

SPEAKS = r"^(?:\d+: ?)?(?:slurmstepd|srun|slurmd)\S*: .*"
"""A log may quote anything: of nodes and memory only SLURM's own processes know."""
KILLED = re.compile(SPEAKS + r"(?:oom[_-]kill|Out Of Memory|OOM Killed)")
NODE_LOST = re.compile(
    SPEAKS + r"(?:DUE TO NODE FAILURE|[Nn]ode failure|credential (?:revoked|expired)|Task launch .* failed on node)"
)
OVER = re.compile(SPEAKS + r"DUE TO TIME LIMIT")
GPU_MEMORY = re.compile(r"OutOfMemoryError: |(?:CUDA|HIP|XPU) out of memory")
SAID = re.compile(
    r"^(?:\d+: ?)?(?:\[process \d+\] )?peftkit: (?:\d+ )?(?P<what>wrong settings|error|unexpected error):(?: (?P<text>.+)|\s*)$"
)
"""A line of peftkit's own on stderr; srun --label puts the task's number before it."""
BULLET = re.compile(r"^(?:\d+: ?)? *• (?P<text>.+)$")
"""One of several problems, in the lines below."""


@dataclass(frozen=True)
class Evidence:
    """All that is known of an attempt. None of it need be there."""

    status: Status | None = None
    failures: Sequence[Failure] = ()
    job: Job | None = None
    log: str = ""
    """The end of the job's log."""
    said: tuple[str, str] | None = None
    """The kind and the sentence with which the job's own script ended the attempt: it knows what it tried on the nodes."""


@dataclass(frozen=True)
class Verdict:
    """What was to blame, in a sentence, and what to do about it."""

    kind: Kind
    text: str
    remedy: str = ""
    failure: Failure | None = None
    """The error file that says so, if one does."""

    def __str__(self) -> str:
        return f"{self.kind}: {self.text}" + (f"\n{self.remedy}" if self.remedy else "")


def blame(evidence: Evidence) -> Verdict:
    """The first cause. Whoever knows it best is asked first."""
    judges: Iterable[Callable[[Evidence], Verdict | None]] = (
        _error_file, _script, _kernel, _scheduler, _own_status, _silent_peer, _last_words, _exit_code,
    )  # fmt: skip
    return next(
        (told for judge in judges if (told := judge(evidence))), Verdict("unknown", NOTHING, REMEDIES["unknown"])
    )


def _error_file(evidence: Evidence) -> Verdict | None:
    """A process that says what went wrong with itself knows best."""
    cause = first_cause(evidence.failures)
    if cause is None or cause.kind in CONSEQUENCES:
        return None
    where = f" at step {cause.step}" if cause.step else ""
    process = f"process {cause.process} of {cause.processes} " if cause.processes > 1 else ""
    who = f"{process}on {cause.host}, {_clock(cause.time)}{where}"
    return Verdict(cause.kind, f"{_short(cause)} ({who})", REMEDIES[cause.kind], cause)


def _script(evidence: Evidence) -> Verdict | None:
    """The job's script has tried the nodes before and after, and has seen what SLURM forgets."""
    if evidence.said is None or evidence.said[0] in (*CONSEQUENCES, "unknown"):
        return None
    kind: Kind = next((known for known in REMEDIES if known == evidence.said[0]), "code")
    return Verdict(kind, evidence.said[1], REMEDIES[kind])


def _kernel(evidence: Evidence) -> Verdict | None:
    """A process that is killed for its memory can write no file; slurmstepd says it in the log."""
    line = _last_line(KILLED, evidence.log)
    if not line and not (evidence.job and evidence.job.state == "OUT_OF_MEMORY"):
        return None
    told = f": {line}" if line else ""
    return Verdict(
        "memory", f"the kernel ended a process that needed more main memory than the job has{told}", HOST_MEMORY
    )


def _scheduler(evidence: Evidence) -> Verdict | None:
    """What SLURM did to the job."""
    job, status = evidence.job, evidence.status
    state = job.state if job else ""
    if state in ("TIMEOUT", "DEADLINE") or _last_line(OVER, evidence.log):
        return Verdict("time limit", f"the time limit ended it{_saved(status)}", REMEDIES["time limit"])
    line = "" if state in ("NODE_FAIL", "BOOT_FAIL") else _last_line(NODE_LOST, evidence.log)
    if line or state in ("NODE_FAIL", "BOOT_FAIL"):
        nodes = f" ({job.nodes})" if job and job.nodes else ""
        told = f": {line}" if line else ""
        return Verdict("node", f"a node of the job failed{nodes}{told}{_saved(status)}", REMEDIES["node"])
    if job and job.reason == "BadConstraints":
        return Verdict("settings", "no node of the cluster has what the job asks for", "ask for less with --slurm")
    if state == "PREEMPTED":
        return Verdict("preempted", f"a job of higher priority took its nodes{_saved(status)}", REMEDIES["preempted"])
    if job and state == "CANCELLED":
        by = f" {job.reason}" if job.reason.startswith("by ") else ""
        return Verdict("cancelled", f"it was cancelled{by}{_saved(status)}", REMEDIES["cancelled"])
    return None


def _own_status(evidence: Evidence) -> Verdict | None:
    """What the run itself wrote as its last word."""
    status = evidence.status
    if status and status.state == "stopped":
        return Verdict("stopped", (status.reason or "it was asked to stop") + _saved(status), REMEDIES["stopped"])
    if status and status.state == "failed" and status.reason and not evidence.failures:
        return Verdict("code", status.reason, REMEDIES["code"])
    return None


def _silent_peer(evidence: Evidence) -> Verdict | None:
    """All files only say that another has gone: the one without a file was ended from outside."""
    cause = first_cause(evidence.failures)
    if cause is None:
        return None
    spoke = {failure.process for failure in evidence.failures}
    silent = [str(process) for process in range(cause.processes) if process not in spoke]
    if not silent or cause.kind != "peer":
        return Verdict(cause.kind, _short(cause), REMEDIES[cause.kind], cause)
    who = f"process {silent[0]}" if len(silent) == 1 else f"processes {', '.join(silent)}"
    text = f"{who} of {cause.processes} went without a word, and the others noticed: {_short(cause)}"
    return Verdict("peer", text, REMEDIES["peer"], cause)


def _last_words(evidence: Evidence) -> Verdict | None:
    """Settings, data and models are refused before there is a status: the log has what was said."""
    said = [found for line in evidence.log.splitlines() if (found := SAID.match(line))]
    if line := _last_line(GPU_MEMORY, evidence.log):
        return Verdict("memory", line, REMEDIES["memory"])
    if not said:
        return None
    kind: Kind = "settings" if said[0]["what"] == "wrong settings" else "code"
    if kind == "code" and evidence.job and evidence.job.exit_code == 2:
        kind = "data"
    listed = dict.fromkeys(found["text"] for line in evidence.log.splitlines() if (found := BULLET.match(line)))
    return Verdict(kind, said[0]["text"] or "; ".join(listed) or said[0]["what"], REMEDIES[kind])


def _exit_code(evidence: Evidence) -> Verdict | None:
    job = evidence.job
    if job is None or not (job.exit_code or job.signal):
        return None
    if job.exit_code == 2:
        return Verdict("settings", "peftkit refused the settings, the data or the model (exit code 2)", LOG)
    signal = job.signal or (job.exit_code - 128 if job.exit_code > 128 else 0)
    if signal == 9:
        return Verdict("memory", "it was killed (signal 9), most often for its main memory", HOST_MEMORY)
    ended = f"signal {signal}" if signal else f"exit code {job.exit_code}"
    return Verdict("code", f"it ended with {ended} and left no error file", LOG)


LOG = "its log says more: peftkit logs"
NOTHING = "nothing says why: no error file, no word in the log, and SLURM knows nothing of it"
HOST_MEMORY = (
    "give the job more memory (--slurm.mem), or need less: fewer --data.workers, no offloading to the CPU,"
    " fewer processes a node"
)
RESUME = "submit it again and it goes on from there"
REMEDIES: Mapping[Kind, str] = {
    "settings": "change the settings that are named and submit again; peftkit train --dry-run checks them without a job",
    "data": "mend the rows (peftkit data check finds what is wrong with them) and submit again",
    "model": "name a model that can be read on the nodes: they may have no network, and no access to your home",
    "code": "the traceback is in the process's error file and log; if it is peftkit's own fault, report it",
    "memory": "lower --batch.tokens, turn on --model.gradient_checkpointing, or take --deepspeed zero3 or zero3_offload",
    "disk": "make room, or send the run elsewhere with --out; the newest complete checkpoint is still good",
    "nonfinite": "a lower --optim.lr or a longer warm-up, and look at the rows that are named; the last good checkpoint is kept",
    "checkpoint": "the checkpoint that is named is damaged or another run's; remove it to go on from the one before",
    "export": "the weights are in the checkpoint still: peftkit export RUN tries again",
    "node": f"leave the node out (--slurm.exclude); {RESUME}",
    "time limit": f"{RESUME}; a longer --time needs fewer turns",
    "preempted": RESUME,
    "cancelled": RESUME,
    "stopped": RESUME,
    "peer": "look at that process's log and node: mostly it was killed for its memory, or its node went away",
    "unknown": LOG,
}  # fmt: skip


def _short(failure: Failure) -> str:
    """The first line of what it says, with the error's type where the message alone is no sentence of peftkit's."""
    line = next((line.strip() for line in failure.message.splitlines() if line.strip()), "")
    line = line if len(line) <= LONGEST else f"{line[: LONGEST - 3]}..."
    own = failure.kind != "code" or not failure.type
    return line if own and line else f"{failure.type}: {line}" if line else failure.type or failure.kind


LONGEST = 600


def _saved(status: Status | None) -> str:
    if status is None:
        return ""
    if status.checkpoint is None:
        return f" at step {status.step}, before its first checkpoint" if status.step else ", before its first step"
    return f"; step {status.checkpoint} of {status.steps} is saved"


def _last_line(pattern: re.Pattern[str], text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if pattern.search(line)), "")


def _clock(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M:%S")
