"""`peftkit jobs`, `watch`, `cancel` and `logs`: runs and their jobs, while they wait, run, fail and end."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from peftkit.cli.words import Parser
from peftkit.errors import ConfigError
from peftkit.printable import printable

if TYPE_CHECKING:
    from peftkit.flows.jobs import Row

WHICH = "a run's folder, a job's number, an array's number or TASK of it (12_3)"


def jobs(words: list[str]) -> int:
    """List the user's jobs."""
    parser = Parser(
        "jobs", "List the jobs that peftkit submitted: how they stand, why they wait, who is to blame if they failed."
    )
    parser.add_argument("--all", action="store_true", help="also what ended more than two days ago")
    parser.add_argument("--json", action="store_true", help="as one JSON object")
    asked = parser.read(words)
    if asked is None:
        return 0
    from peftkit.flows.jobs import listing

    found = listing(asked.all)
    if asked.json:
        import json

        _say(json.dumps(found.as_json(), indent=1))
        return 0
    for line in [*found.told, *([found.problem] if found.problem else [])]:
        _say(line)
    _list(found.rows)
    return 0


def watch(words: list[str]) -> int:
    """Follow a run until its end."""
    parser = Parser(
        "watch",
        "Follow a run's state and log until its end. Exit code: 0 done, 1 failed, 2 settings, data or model are wrong,"
        " 75 stopped and saved, 130 cancelled.",
    )
    parser.add_argument("run", metavar="RUN|JOB", help=WHICH)
    parser.add_argument("--every", type=float, default=5, metavar="SECONDS", help="how often to look (default: 5)")
    parser.add_argument("--no-log", action="store_true", help="tell the state alone")
    asked = parser.read(words)
    if asked is None:
        return 0
    from peftkit.flows.watch import watch as follow

    return follow(asked.run, _say, every=_positive("--every", asked.every), log=not asked.no_log)


def cancel(words: list[str]) -> int:
    """End a run for good."""
    parser = Parser("cancel", "Let a run save and stop, and cancel its job and those that wait for its success.")
    parser.add_argument("run", metavar="RUN|JOB", help=WHICH)
    parser.add_argument("--now", action="store_true", help="at once: what was not saved is lost")
    waits = "how long it may take to save before its job is cancelled all the same (default: as long as it takes)"
    parser.add_argument("--wait", type=float, metavar="SECONDS", help=waits)
    asked = parser.read(words)
    if asked is None:
        return 0
    from peftkit.flows.cancel import cancel as end
    from peftkit.flows.watch import FOREVER

    end(asked.run, _say, now=asked.now, wait=FOREVER if asked.wait is None else _positive("--wait", asked.wait))
    return 0


def logs(words: list[str]) -> int:
    """Tell why a run stands as it does."""
    parser = Parser("logs", "The first cause first, then what every process said, then the ends of the logs.")
    parser.add_argument("run", metavar="RUN|JOB", help=WHICH)
    parser.add_argument("--process", type=int, metavar="K", help="one process's error and log alone")
    parser.add_argument("--lines", type=int, default=20, metavar="N", help="lines of each log (default: 20)")
    parser.add_argument("--follow", action="store_true", help="go on with what is added, until the run's end")
    asked = parser.read(words)
    if asked is None:
        return 0
    from peftkit.flows.logs import logs as tell
    from peftkit.flows.watch import watch as follow

    tell(asked.run, _say, asked.process, int(_positive("--lines", asked.lines)))
    return follow(asked.run, _say, from_end=True) if asked.follow else 0


def _positive(flag: str, value: float) -> float:
    if value <= 0:
        raise ConfigError(f"{flag} {value:g}: a number above 0")
    return value


def _say(line: str) -> None:
    # Each line is seen when it is said: a watch's reader is mostly another program, or a pipe.
    sys.stdout.write(f"{printable(line)}\n")
    sys.stdout.flush()


def _list(rows: list[Row]) -> None:
    """A line for each, and one below it with the reason: a column would leave no room for a sentence."""
    if not rows:
        _say("no jobs: peftkit submit makes one")
        return
    lines = [["job", "state", "step", "left", "run"], *(row.cells for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(4)]
    reasons = ["", *(row.told for row in rows)]
    for line, reason in zip(lines, reasons, strict=True):
        _say("  ".join([*(cell.ljust(width) for cell, width in zip(line, widths, strict=False)), line[-1]]))
        if reason:
            _say(f"{' ' * widths[0]}  {reason}")
