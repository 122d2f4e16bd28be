"""`peftkit cancel RUN|JOB`: save first, then end for good; or at once."""

from __future__ import annotations

import time

from peftkit.errors import ConfigError, PeftkitError
from peftkit.flows.watch import FOREVER, Say
from peftkit.slurm.ask import ask as ask_slurm
from peftkit.slurm.ledger import Entry
from peftkit.slurm.states import Ask
from peftkit.slurm.work import Work, find, followers, look_at


def cancel(
    word: str, say: Say, now: bool = False, wait: float = FOREVER, every: float = 2, ask: Ask = ask_slurm
) -> None:
    """Cancel what `word` names, and the jobs that wait for its success.

    What is training is asked to save, and gets `wait` seconds for it; `now` asks nothing.
    Raises PeftkitError if SLURM does not do it, ConfigError if there is no job that could be ended at once.
    """
    entries = find(word)
    works = look_at(entries, ask)
    for work in works:
        _refuse(work, now)
    for follower in _followers(entries):
        end(follower, say, ask)
    saving = [work for work in works if not now and may_save(work)]
    for work in saving:
        ask_to_save(work, say, ask)
    await_saved([work.entry for work in saving], say, wait, every, ask)
    for work in look_at(entries, ask) if saving else works:
        if not work.state.is_over and work.state.state != "done" and work.entry.job:
            end(work.entry, say, ask)
        elif not saving:
            say(f"{work.called} is over: {work.state.state}")


def may_save(work: Work) -> bool:
    """Whether it is in the middle of its steps: before the first there is nothing to save, and a job that waits has saved."""
    return (
        work.state.state in ("starting", "running")
        and work.status is not None
        and work.status.state in ("starting", "running")
    )


def ask_to_save(work: Work, say: Say, ask: Ask = ask_slurm) -> None:
    """Let all its processes agree on a step, save it and end, and let the job not be put back into the queue for that."""
    if work.entry.job:
        ask("scontrol", "update", f"jobid={work.entry.job}", "requeue=0")
    work.folder.stop.touch()
    say(f"{work.called} is asked to save and stop ({work.folder.stop})")


def await_saved(entries: list[Entry], say: Say, wait: float, every: float, ask: Ask = ask_slurm) -> None:
    """Return when all have stopped, or their time is over."""
    left, until = entries, time.monotonic() + wait
    while left and time.monotonic() < until:
        works = look_at(left, ask)
        for work in works:
            if _has_stopped(work):
                step = work.status.checkpoint if work.status else None
                say(f"{work.called} has stopped" + (f"; step {step} is saved" if step else ""))
        left = [work.entry for work in works if not _has_stopped(work)]
        if left:
            time.sleep(every)
    for entry in left:
        say(f"{entry.run} has not saved within {wait:g} s; the checkpoint before stays good")


def end(entry: Entry, say: Say, ask: Ask = ask_slurm) -> None:
    """Cancel the job; one that is over already is no problem."""
    said = ask("scancel", entry.job)
    gone = "invalid job id" in said.err.lower() or "already completing or completed" in said.err.lower()
    if said.code and not gone:
        raise PeftkitError(f"job {entry.job} could not be cancelled: {said.complaint}; try again when SLURM answers")
    say(f"job {entry.job} ({entry.what}) is cancelled")


def _has_stopped(work: Work) -> bool:
    return work.state.is_over or (work.status is not None and work.state.state in ("stopped", "done", "failed"))


def _followers(entries: list[Entry]) -> list[Entry]:
    found = {one.job: one for entry in entries for one in followers(entry)}
    return list(found.values())


def _refuse(work: Work, now: bool) -> None:
    if now and not work.entry.job and not work.state.is_over:
        where = f" (process on {work.status.host})" if work.status else ""
        raise ConfigError(
            f"{work.entry.run} runs without a job{where}, so --now has nothing to end; without --now it is asked to save and stop"
        )
    if not now and work.entry.job and not work.heard:
        raise PeftkitError(
            f"SLURM gives no answer; to let {work.entry.run} save and stop meanwhile: touch {work.folder.stop}"
        )
