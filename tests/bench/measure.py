"""Measure whole commands in turns (A B A B ...): wall seconds, CPU seconds and peak memory of each, with their children."""

from __future__ import annotations

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
    """What one run of a command took. `cpu` counts every process that it started and waited for."""

    wall: float
    cpu: float
    peak_mb: float


def in_turns(
    commands: Mapping[str, Sequence[str]], turns: int, folder: Path, codes: Sequence[int] = (0,)
) -> dict[str, list[Cost]]:
    """Run all of them once to warm the disk's cache, then `turns` times in turns; a command that fails stops it all.

    `{turn}` in a word becomes the turn's number, so that each run can have a folder of its own.
    """
    costs: dict[str, list[Cost]] = {name: [] for name in commands}
    for turn in range(turns + 1):
        for name, words in commands.items():
            cost = run([word.replace("{turn}", str(turn)) for word in words], folder / f"{name}.log", codes)
            if turn:
                costs[name].append(cost)
    return costs


def run(words: Sequence[str], log: Path, codes: Sequence[int] = (0,)) -> Cost:
    start = time.perf_counter()
    with log.open("wb") as output:
        process = subprocess.Popen(words, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode not in codes:
        sys.exit(f"{' '.join(words)} ended with {process.returncode}:\n{log.read_text()[-3000:]}")
    return Cost(time.perf_counter() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def table(costs: Mapping[str, Sequence[Cost]]) -> str:
    """A line for each command: the median, the least and the most of each measure."""
    lines = [f"{'':24} {'CPU seconds':>22} {'wall seconds':>22} {'peak MB':>22}"]
    for name, runs in costs.items():
        cells = [spread([getattr(cost, kind) for cost in runs]) for kind in ("cpu", "wall", "peak_mb")]
        lines.append(f"{name:24} " + " ".join(f"{cell:>22}" for cell in cells))
    return "\n".join(lines)


def spread(values: Sequence[float]) -> str:
    digits = 0 if median(values) >= 100 else 2
    return f"{median(values):.{digits}f} [{min(values):.{digits}f}-{max(values):.{digits}f}]"


def ratios(first: Sequence[Cost], second: Sequence[Cost]) -> list[float]:
    """CPU seconds of `first` in those of `second`, turn by turn, so that a busy minute weighs on both."""
    return [one.cpu / other.cpu for one, other in zip(first, second, strict=True)]
