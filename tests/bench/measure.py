"""Measure whole commands in turns (A B A B ...): wall seconds, CPU seconds and peak memory of each, with their children."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median


@dataclass(frozen=True)
class Cost:
    """What one run of a command took. `cpu` counts every process that it started and waited for.

    `reached` is the CPU time when a file that the command writes on its way got its first line.
    """

    wall: float
    cpu: float
    peak_mb: float
    reached: float


def in_turns(
    commands: Mapping[str, Sequence[str]],
    turns: int,
    folder: Path,
    codes: Sequence[int] = (0,),
    marks: Mapping[str, str] | None = None,
) -> dict[str, list[Cost]]:
    """Run all of them once to warm the disk's cache, then `turns` times in turns; a command that fails stops it all.

    `{turn}` in a word becomes the turn's number, so that each run can have a folder of its own. `marks` names the file
    whose first line each command is timed to.
    """
    costs: dict[str, list[Cost]] = {name: [] for name in commands}
    for turn in range(turns + 1):
        for name, words in commands.items():
            now = [word.replace("{turn}", str(turn)) for word in words]
            mark = Path((marks or {}).get(name, os.devnull).replace("{turn}", str(turn)))
            cost = run(now, folder / f"{name}.log", mark, codes)
            if turn:
                costs[name].append(cost)
    return costs


def run(words: Sequence[str], log: Path, mark: Path, codes: Sequence[int] = (0,)) -> Cost:
    start = time.perf_counter()
    with log.open("wb") as output:
        process = subprocess.Popen(words, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        reached = cpu_at(mark, process.pid)
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode not in codes:
        sys.exit(f"{' '.join(words)} ended with {process.returncode}:\n{log.read_text()[-3000:]}")
    return Cost(time.perf_counter() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, reached)


def cpu_at(mark: Path, pid: int) -> float:
    """CPU seconds of the process and of its ended children when `mark` got its first line (not a number if never)."""
    while str(mark) != os.devnull:
        # Behind the command's name in brackets: state is field 3; utime, stime, cutime and cstime are 14 to 17.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        if fields[0] == "Z":
            break
        if mark.exists() and b"\n" in mark.read_bytes():
            return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
        time.sleep(0.005)
    return math.nan


def table(costs: Mapping[str, Sequence[Cost]], kinds: Mapping[str, str]) -> str:
    """A line for each command: the median [least-most] of each measure; `kinds` are Cost's fields and their titles."""
    lines = [" " * 24 + "".join(f"{title:>24}" for title in kinds.values())]
    for name, runs in costs.items():
        cells = [spread([getattr(cost, kind) for cost in runs]) for kind in kinds]
        lines.append(f"{name:24}" + "".join(f"{cell:>24}" for cell in cells))
    return "\n".join(lines)


def spread(values: Sequence[float]) -> str:
    digits = 0 if median(values) >= 100 else 2
    return f"{median(values):.{digits}f} [{min(values):.{digits}f}-{max(values):.{digits}f}]"


def ratio(first: Sequence[Cost], second: Sequence[Cost], kind: str) -> str:
    """`first` in parts of `second`, turn by turn, so that a busy minute weighs on both."""
    return spread([getattr(one, kind) / getattr(other, kind) for one, other in zip(first, second, strict=True)])
