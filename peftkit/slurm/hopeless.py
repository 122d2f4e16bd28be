"""Jobs whose dependency can never be met: found, named with the job that failed them, and cancelled.

SLURM leaves them in the queue for ever, where the site did not choose otherwise (`kill_invalid_depend`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from peftkit.slurm.ask import ask as ask_slurm
from peftkit.slurm.ledger import Entry, enter, entries
from peftkit.slurm.reasons import why
from peftkit.slurm.states import Ask
from peftkit.slurm.work import Work, followers, look_at


def end_hopeless(works: Iterable[Work], ask: Ask = ask_slurm) -> Iterator[str]:
    """Cancel those of the jobs that wait for one that did not succeed, and what waits for them; a sentence each."""
    ended: set[str] = set()
    for work in works:
        if work.entry.job in ended or not is_hopeless(work):
            continue
        yield from _end(work.entry, _because(work, ask), ended, ask)
        for follower in followers(work.entry):
            if follower.job not in ended:
                yield from _end(follower, f"it needs job {follower.after}, which was cancelled", ended, ask)


def is_hopeless(work: Work) -> bool:
    return work.state.state == "waiting" and work.job is not None and why(work.job).reason == "DependencyNeverSatisfied"


def _end(entry: Entry, because: str, ended: set[str], ask: Ask) -> Iterator[str]:
    said = ask("scancel", entry.job)
    ended.add(entry.job)
    if said.code == 0:
        enter(replace(entry, cancelled=because))
    done = "cancelled" if said.code == 0 else f"could not be cancelled ({said.complaint})"
    yield f"job {entry.job} ({entry.what}) {done}: {because}"


def _because(work: Work, ask: Ask) -> str:
    """Which job failed it, and why that one did."""
    parents = [entry for entry in entries() if entry.job == work.entry.after]
    failed = [one for one in look_at(parents, ask) if one.state.state != "done"]
    if not failed:
        return why(work.job).text if work.job else ""
    told = f" ({failed[0].reason})" if failed[0].reason else ""
    return f"it needs {failed[0].called}, which did not succeed{told}"
