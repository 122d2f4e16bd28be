"""How the command line speaks of what went wrong: on stderr, a problem a line, and no traceback unless one asks."""

from __future__ import annotations

import os
import sys
import tempfile
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from peftkit.errors import ConfigError, PeerError, PeftkitError, StoppedError
from peftkit.printable import printable
from peftkit.redact import redact

if TYPE_CHECKING:
    from rich.console import Console


TITLES = {ConfigError: "wrong settings", StoppedError: "stopped"}
"""What a message begins with, where it is no error."""


def stdout() -> Console:
    """The terminal, or 80 plain columns where there is none."""
    return _console(stderr=False)


def _console(stderr: bool) -> Console:
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() or "COLUMNS" in os.environ else 80
    return Console(stderr=stderr, highlight=False, width=width)


def say_problem(problem: PeftkitError) -> None:
    """The problem in its own words; settings that are wrong are listed, and only once for all processes."""
    if not _speaks(problem):
        return
    problems = problem.problems if isinstance(problem, ConfigError) else [str(problem)]
    title = next((title for kind, title in TITLES.items() if isinstance(problem, kind)), "error")
    if len(problems) == 1:
        _say(f"{_process()}peftkit: {title}: ", problems[0])
        return
    _say(f"{_process()}peftkit: {len(problems)} {title}:", "")
    for one in problems:
        _say("  • ", one)


def _say(title: str, text: str) -> None:
    text = printable(redact(text))
    if not sys.stderr.isatty():
        sys.stderr.write(f"{title}{text}\n")
        return
    from rich.text import Text

    # Not wrapped: a path or a flag that is cut in two can be neither searched nor copied.
    _console(stderr=True).print(Text(title, style="bold red").append(text, style="not bold default"), soft_wrap=True)


def _speaks(problem: PeftkitError) -> bool:
    """Settings are the same on every process: the first speaks. Data and models may be amiss on one machine: each one's first."""
    process = os.environ.get("RANK", "0")
    if isinstance(problem, PeerError):
        return not problem.quiet
    if isinstance(problem, (ConfigError, StoppedError)):
        return process == "0"
    return problem.exit_code != 2 or os.environ.get("LOCAL_RANK", process) == "0"


def _process() -> str:
    process = os.environ.get("RANK", "0")
    return "" if process == "0" else f"[process {process}] "


def say_interrupted() -> None:
    if os.environ.get("RANK", "0") == "0":
        _say("peftkit: interrupted", "")


def say_unexpected(problem: Exception, verbose: bool) -> None:
    """A fault of ours or of a library: what it was, and where its traceback is."""
    told = traceback.format_exception_only(problem)[-1].strip()
    if verbose:
        sys.stderr.write(redact("".join(traceback.format_exception(problem))))
    where = (
        f"the traceback is in {_log_of(problem)}; --verbose shows it here" if not verbose else "see the traceback above"
    )
    _say(f"{_process()}peftkit: unexpected error: ", f"{told[:500]}\n  {where}")


def _log_of(problem: Exception) -> Path:
    """The log file that has the traceback already, or a new one."""
    quiet = sys.modules.get("peftkit.tracking.quiet")
    if quiet and (log := quiet.log_of(problem)):
        return Path(log)
    with tempfile.NamedTemporaryFile("w", prefix="peftkit-", suffix=".log", delete=False, encoding="utf-8") as file:
        file.write(redact("".join(traceback.format_exception(problem))))
    return Path(file.name)
