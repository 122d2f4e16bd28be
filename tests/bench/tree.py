"""One command and all its children while they run: CPU seconds and memory, also at the moments when it writes a line."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""What a training in this process leaves in its environment: a runner is a process of its own, and meets nobody."""
TICK = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")
EVERY = 0.005
"""Seconds between two looks for a new line; memory is looked at every tenth time."""


@dataclass
class Watched:
    """What a command took. `at` is the CPU of the whole tree when each line was there, `peak` its memory until the last one."""

    wall: float = 0.0
    cpu: float = 0.0
    """CPU seconds of all; not a number if it was ended after its last line."""
    at: list[float] = field(default_factory=list)
    clock: list[float] = field(default_factory=list)
    peak: float = 0.0
    """Bytes, until the last line."""

    @property
    def steady(self) -> float:
        """CPU seconds between the first line and the last."""
        return self.at[-1] - self.at[0]


def watch(
    words: Sequence[str], env: Mapping[str, str], log: Path, lines: Path, last: int, cwd: Path, whole: bool = False
) -> Watched:
    """Run a command that appends a line to `lines` after each of its `last` steps, and end it after them unless `whole`.

    SystemExit if it fails, or writes fewer lines.
    """
    seen = Watched()
    start = time.perf_counter()
    with log.open("wb") as output, ended_with_us():
        process = subprocess.Popen(
            words,
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={name: value for name, value in env.items() if name not in LAUNCHER},
            cwd=cwd,
            start_new_session=True,
        )
        try:
            follow(process.pid, seen, lines, last, start)
            if whole:
                _, status, usage = os.wait4(process.pid, 0)
                process.returncode = os.waitstatus_to_exitcode(status)
                seen.cpu = usage.ru_utime + usage.ru_stime
            else:
                seen.cpu = math.nan
        finally:
            if process.returncode is None:
                failed = ended(process.pid)
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                process.returncode = process.returncode if failed else 0
    seen.wall = time.perf_counter() - start
    if process.returncode or len(seen.at) != last:
        sys.exit(
            f"{' '.join(words)} ended with {process.returncode} after {len(seen.at)} of {last} steps:\n"
            f"{log.read_text(errors='replace')[-3000:]}"
        )
    return seen


def follow(pid: int, seen: Watched, lines: Path, last: int, start: float) -> None:
    """Note what the tree took at each line, until the last one or the command's end."""
    look = 0
    while len(seen.at) < last and not ended(pid):
        if look % 10 == 0:
            seen.peak = max(seen.peak, memory(pid))
        for _ in range(steps_in(lines) - len(seen.at)):
            seen.at.append(cpu(pid))
            seen.clock.append(time.perf_counter() - start)
        look += 1
        time.sleep(EVERY)
    seen.peak = max(seen.peak, memory(pid), highest(pid))


@contextmanager
def ended_with_us() -> Iterator[None]:
    """Asked to end, this process first ends what it has started."""

    def leave(*_: object) -> None:
        sys.exit(143)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def steps_in(path: Path) -> int:
    """Whole lines in the file that are steps: those of an evaluation name their split."""
    with suppress(FileNotFoundError):
        lines = path.read_bytes().split(b"\n")[:-1]
        return sum(b'"loss"' in line and b'"split"' not in line for line in lines)
    return 0


def cpu(pid: int) -> float:
    """CPU seconds of a process, of its living descendants, and of all that they have waited for."""
    return sum(sum(map(int, fields[11:15])) for one in tree(pid) if (fields := stat(one))) / TICK


def memory(pid: int) -> float:
    """Bytes held by a process and its descendants; what several of them share is divided among those that do."""
    processes = list(tree(pid))
    if len(processes) == 1:
        return resident(pid)
    return sum(map(proportional, processes))


def highest(pid: int) -> float:
    """The most that this process alone ever held."""
    return named(pid, "status", "VmHWM:")


def resident(pid: int) -> float:
    with suppress(OSError, IndexError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE
    return 0.0


def proportional(pid: int) -> float:
    return named(pid, "smaps_rollup", "Pss:")


def named(pid: int, file: str, name: str) -> float:
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/{file}").read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1]) * 1024
    return 0.0


def tree(pid: int) -> Iterator[int]:
    """The process and its descendants."""
    yield pid
    with suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            for child in (thread / "children").read_text().split():
                yield from tree(int(child))


def stat(pid: int) -> list[str]:
    """From the state on: utime, stime, cutime and cstime are 11 to 14. Empty if it has gone."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return []


def ended(pid: int) -> bool:
    fields = stat(pid)
    return not fields or fields[0] == "Z"
