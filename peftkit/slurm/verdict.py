"""How an attempt of a job ended, and what follows: the job's script asks this on its first node.

python -m peftkit.slurm.verdict begin RUN ATTEMPT JOB NODE ...
python -m peftkit.slurm.verdict end RUN ATTEMPT JOB --code N --lost NODES ...      # prints `again`, or the job's exit code

It reads what the run wrote in this attempt (its status, its processes' error files), never an exit code alone: srun's is 0
after a node has failed, and 143 whatever the first failure was.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from peftkit.errors import ConfigError, PeftkitError, StoppedError
from peftkit.run_folder import RunFolder
from peftkit.slurm.blame import Evidence, blame
from peftkit.status import Failure, Status, read_failures, read_status

Word = Literal["done", "again", "stopped", "failed"]

OUTSIDE = ("node", "peer", "preempted", "time limit", "unknown", "stopped")
"""Kinds of failures that another attempt may not have: nobody's settings, rows or code are to blame."""
REFUSED = ("settings", "data", "model")
PORT_TAKEN = re.compile(r"EADDRINUSE|[Aa]ddress already in use")


@dataclass(frozen=True)
class Ending:
    """What is known of an attempt that has ended."""

    code: int = 0
    """srun's exit code."""
    signal: str = ""
    """What SLURM or a user sent to the job, if anything."""
    lost: str = ""
    """Nodes that do not answer any more."""
    state: str = "RUNNING"
    """SLURM's word for the job."""
    status: Status | None = None
    """The run's own, if it is of this attempt."""
    failures: Sequence[Failure] = ()
    log: str = ""
    """What the job said in this attempt."""
    preflight: Sequence[str] = ()
    """What was amiss on the nodes before the training began."""
    by_hand: bool = False
    """Whether a user asked for the stop (touch RUN/stop): a job's own request is written into that file."""
    advanced: bool = False
    """Whether there is a checkpoint that was not there when the attempt began."""
    fruitless: int = 0
    """How many attempts before this one in a row were put back without a new checkpoint."""


@dataclass(frozen=True)
class Decision:
    """What follows."""

    word: Word
    kind: str
    why: str
    code: int = 0
    """The job's exit code, if it is over."""


def decide(ending: Ending, max_requeues: int) -> Decision:
    """What follows from how an attempt ended."""
    status = ending.status
    if status and status.state == "done":
        return Decision("done", "done", f"done after {status.steps} steps")
    if ending.state not in ("RUNNING", ""):
        # What SLURM ends itself is cancelled, or put back by SLURM: to put it back from here would undo a cancellation.
        why = "SLURM itself ended it: it was cancelled, preempted, or lost a node"
        return Decision("stopped", "cancelled", why, StoppedError.exit_code)
    if status and status.state == "stopped" and ending.by_hand:
        return Decision("stopped", "stopped", "it was asked to stop, by touch RUN/stop", StoppedError.exit_code)
    if ending.preflight and not ending.lost:
        return Decision("failed", "node", " ".join(ending.preflight), PeftkitError.exit_code)
    kind, why, may_pass = _cause(ending)
    if not may_pass:
        return Decision("failed", kind, why, ConfigError.exit_code if kind in REFUSED else PeftkitError.exit_code)
    if not ending.advanced and ending.fruitless >= max_requeues:
        return Decision(
            "failed",
            kind,
            f"{why}; and no checkpoint was written in {ending.fruitless + 1} attempts",
            PeftkitError.exit_code,
        )
    return Decision("again", kind, why)


def _cause(ending: Ending) -> tuple[str, str, bool]:
    """Its kind, a sentence, and whether another attempt may do better."""
    status = ending.status
    if status and status.state == "stopped":
        return (
            "time limit",
            f"saved step {status.checkpoint or status.step} of {status.steps} and made room: {status.reason}",
            True,
        )
    told = blame(Evidence(status, ending.failures, None, ending.log))
    # A process whose peers' node has gone may fail with an error of any code's, but not with one of these.
    if told.failure and told.kind not in (*OUTSIDE, "code"):
        return told.kind, told.text, False
    if ending.lost:
        return "node", f"{ending.lost} does not answer any more", True
    if told.kind not in OUTSIDE:
        return told.kind, told.text, False
    if ending.signal:
        return "time limit", f"it did not save within the time that it had after {ending.signal}", True
    if PORT_TAKEN.search(ending.log):
        return "node", "another program took the port on which the nodes meet", True
    if told.kind == "unknown" and status is None and 0 < ending.code < 128:
        # srun itself was not ended: what it started gave up by itself, and will again.
        return "code", f"it ended with exit code {ending.code} before the training began, and left no error file", False
    return told.kind, told.text, True


def begin(folder: RunFolder, attempt: int, job: str, nodes: Sequence[str]) -> None:
    """Note an attempt, and how far the run was."""
    log = folder.job_log(job)
    size = log.stat().st_size if log.exists() else 0
    _note(folder, event="begin", attempt=attempt, job=job, nodes=list(nodes), step=_step(folder), log=size)


def end(folder: RunFolder, attempt: int, job: str, said: argparse.Namespace) -> Decision:
    """Judge an attempt and note it."""
    rows = [row for row in attempts(folder) if row.get("job") == job]
    began: dict[str, Any] = next(
        (row for row in reversed(rows) if row["event"] == "begin" and row["attempt"] == attempt), {}
    )
    status = read_status(folder.status)
    ending = Ending(
        code=said.code,
        signal=said.signal,
        lost=said.lost,
        state=said.state,
        status=status if status and status.attempt == attempt and status.job in ("", job) else None,
        failures=read_failures(folder, attempt),
        log=_tail(folder.job_log(job), began.get("log", 0)),
        preflight=_preflight(folder, attempt),
        by_hand=folder.stop.exists() and not folder.stop.stat().st_size,
        advanced=_step(folder) > began.get("step", 0),
        fruitless=fruitless(rows),
    )
    decision = decide(ending, said.max_requeues)
    why = {"verdict": decision.word, "kind": decision.kind, "why": decision.why}
    _note(
        folder,
        event="end",
        attempt=attempt,
        job=job,
        step=_step(folder),
        advanced=ending.advanced,
        lost=said.lost,
        **why,
    )
    return decision


def attempts(folder: RunFolder) -> list[dict[str, Any]]:
    """The rows of RUN/slurm/attempts.jsonl; a line that is not whole is left out."""
    return list(_rows(folder.attempts)) if folder.attempts.exists() else []


def _rows(file: Path) -> Iterator[dict[str, Any]]:
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and {"event", "attempt"} <= row.keys():
            yield row


def fruitless(rows: Sequence[dict[str, Any]]) -> int:
    """How many of the last attempts were put back and had written no checkpoint."""
    count = 0
    for row in reversed([row for row in rows if row["event"] == "end"]):
        if row.get("advanced") or row.get("verdict") != "again":
            break
        count += 1
    return count


def _note(folder: RunFolder, **row: Any) -> None:
    # A disk that is full may not make a failure of a run that is done.
    with suppress(OSError):
        folder.slurm.mkdir(parents=True, exist_ok=True)
        with folder.attempts.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**row, "time": time.time()}) + "\n")


def _step(folder: RunFolder) -> int:
    return max(folder.checkpoint_steps(), default=0)


def _tail(log: Path, start: int, most: int = 1 << 20) -> str:
    """What stands in the log from `start` on, of it at most the last megabyte."""
    if not log.exists():
        return ""
    with log.open("rb") as file:
        file.seek(max(start, log.stat().st_size - most))
        return file.read().decode(errors="replace")


def _preflight(folder: RunFolder, attempt: int) -> list[str]:
    try:
        return [str(problem) for problem in json.loads(folder.preflight(attempt).read_text())["problems"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def main(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m peftkit.slurm.verdict")
    parser.add_argument("event", choices=("begin", "end"))
    parser.add_argument("run", type=Path)
    parser.add_argument("attempt", type=int)
    parser.add_argument("job")
    parser.add_argument("nodes", nargs="*")
    for name, default in (("--signal", ""), ("--lost", ""), ("--state", "RUNNING")):
        parser.add_argument(name, default=default)
    parser.add_argument("--code", type=int, default=0)
    parser.add_argument("--max-requeues", type=int, default=0)
    said = parser.parse_args(words)
    folder = RunFolder(said.run)
    if said.event == "begin":
        begin(folder, said.attempt, said.job, said.nodes)
        return 0
    decision = end(folder, said.attempt, said.job, said)
    sys.stderr.write(f"peftkit: attempt {said.attempt}: {decision.why} ({decision.word})\n")
    sys.stdout.write("again\n" if decision.word == "again" else f"{decision.code}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
