"""What a run tells, and to whom: the terminal and metrics.jsonl on the first process, nobody on the others."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import torch

from peftkit.tracking.console import Console, Pairs
from peftkit.tracking.jsonl import JsonLines
from peftkit.tracking.log import Log


class Teller:
    """Speaks for all processes if `speaks` is true; else every method does nothing."""

    def __init__(self, speaks: bool) -> None:
        self._console = Console() if speaks else None
        self._logs: list[Log] = []
        self._before: dict[str, dict[str, float]] = {}

    def log_to(self, metrics: Path) -> None:
        """From now on every step and evaluation is a row of this file too."""
        if self._console:
            self._logs.append(JsonLines(metrics))

    def header(self, title: str, pairs: Pairs) -> None:
        if self._console:
            self._console.header(title, pairs)

    def start(self, total_steps: int, done: int) -> None:
        if self._console:
            self._console.start(total_steps, done)

    def step(self, row: dict[str, Any]) -> None:
        if self._console:
            row = {**row, "memory": memory()}
            self._write(row)
            self._console.step(row)

    def evaluation(self, split: str, step: int, numbers: dict[str, float]) -> None:
        """Shown beside the same split's first numbers."""
        if self._console:
            self._write({"step": step, "split": split, **numbers})
            self._console.evaluation(split, step, numbers, self._before.get(split))
            self._before.setdefault(split, numbers)

    def scores(self, numbers: dict[str, float], by: str | None = None) -> None:
        """Numbers that are compared with none."""
        if self._console:
            self._console.scores(numbers, by)

    def note(self, text: str) -> None:
        if self._console:
            self._console.note(text)

    def warn(self, text: str) -> None:
        if self._console:
            self._console.warn(text)

    def summary(self, pairs: Pairs, next_commands: Sequence[str]) -> None:
        if self._console:
            self._console.summary(pairs, next_commands)

    def close(self) -> None:
        for log in self._logs:
            log.close()
            if isinstance(log, JsonLines) and log.waiting:
                self.warn("metrics.jsonl lacks its last rows, which could not be written")
        if self._console:
            self._console.close()

    def _write(self, row: dict[str, Any]) -> None:
        for log in self._logs:
            log.write(row)


def memory() -> int:
    """Bytes that this process holds: on its GPU at most so far, else in main memory now."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return int(psutil.Process().memory_info().rss)
