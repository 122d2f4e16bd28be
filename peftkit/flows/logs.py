"""`peftkit logs RUN|JOB`: the first cause first, then what every process said, then the ends of the logs."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from peftkit.errors import ConfigError
from peftkit.flows.watch import Say, headline
from peftkit.slurm.ask import ask as ask_slurm
from peftkit.slurm.states import Ask
from peftkit.slurm.work import Work, find, look_at, tail
from peftkit.status import Failure


def logs(word: str, say: Say, process: int | None = None, lines: int = 20, ask: Ask = ask_slurm) -> None:
    """Tell what is known of why it stands as it does; `process` shows that one's error and log alone.

    Raises ConfigError if there is no such process.
    """
    works = look_at(find(word), ask)
    for work in works:
        if len(works) > 1:
            say(f"{work.called}")
        for line in told(work, lines) if process is None else of_process(work, process, lines):
            say(line)


def told(work: Work, lines: int) -> Iterator[str]:
    """The verdict, every process's failure in the order of time, and the ends of the logs."""
    yield headline(work)
    if work.state.state in ("failed", "stopped", "cancelled", "unknown") and work.verdict.remedy:
        yield work.verdict.remedy
    if cause := work.verdict.failure:
        yield from ["", f"the first cause, on process {cause.process}:", *_trace(cause)]
    if len(work.failures) > 1:
        yield from ["", f"all {len(work.failures)} processes that failed, in the order of time:"]
        yield from (_line(failure) for failure in work.failures)
    for path in work.logs:
        yield from ["", *_end(path, lines)]


def of_process(work: Work, process: int, lines: int) -> Iterator[str]:
    """One process's error file, whole, and the end of its log."""
    found = [failure for failure in work.failures if failure.process == process]
    path = work.folder.log(process)
    if not found and not path.is_file():
        raise ConfigError(f"--process {process}: {work.entry.run} has neither an error file nor a log of it")
    for failure in found:
        yield from [_line(failure), *_trace(failure)]
    if path.is_file():
        yield from ["", *_end(path, lines)]


def _end(path: Path, lines: int) -> list[str]:
    return [f"the end of {path}:", *tail(path).splitlines()[-lines:]]


def _trace(failure: Failure) -> list[str]:
    text = failure.traceback.strip() or f"{failure.type}: {failure.message}"
    return text.splitlines()


def _line(failure: Failure) -> str:
    when = datetime.fromtimestamp(failure.time).strftime("%H:%M:%S.%f")[:-3]
    what = next(iter(failure.message.strip().splitlines()), "")
    return f"  {when}  process {failure.process} on {failure.host}, step {failure.step}: {failure.kind}: {failure.type}: {what}"
