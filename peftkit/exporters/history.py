"""What a run's folder tells of its training, for the model card: rows, steps, time, processes. Nothing of what is in a row."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peftkit.exporters.base import read_object
from peftkit.run_folder import RunFolder
from peftkit.status import Status, read_status


@dataclass(frozen=True)
class History:
    """How a training went."""

    splits: Mapping[str, Any] = field(default_factory=dict)
    """RUN/splits.json."""
    splits_sha256: str = ""
    steps: Sequence[Mapping[str, Any]] = ()
    """The rows of RUN/metrics.jsonl that are of a step, each step once."""
    evaluations: Sequence[Mapping[str, Any]] = ()
    """Those that are of an evaluation."""
    status: Status | None = None

    def data(self) -> dict[str, str]:
        """Each source: its rows, what was held out of it, and its digest."""
        rows = {}
        for source in self.splits.get("train", ()):
            held = {split: len(numbers) for split, numbers in source.get("held_out", {}).items()}
            told = [f"{source['rows']:,} rows", *(f"{count:,} held out for {split}" for split, count in held.items())]
            rows[f"train: {source['name']}"] = _with_digest(told, source)
        for split, source in self.splits.get("given", {}).items():
            rows[f"{split}: {source['name']}"] = _with_digest([f"{source['rows']:,} rows"], source)
        return rows | ({"splits.json (which rows, by number)": f"sha256 {self.splits_sha256}"} if rows else {})

    def rows_of(self, split: str) -> int | None:
        """How many rows there were to score."""
        given = self.splits.get("given", {}).get(split)
        if given:
            return int(given["rows"])
        held = [len(source.get("held_out", {}).get(split, ())) for source in self.splits.get("train", ())]
        return sum(held) or None

    def hardware(self) -> dict[str, str]:
        """What it ran on, and for how long; only what is known."""
        rows = {}
        if self.status:
            rows["processes"] = str(self.status.processes)
            rows |= {"device": self.status.device} if self.status.device else {}
        if self.steps:
            seconds = math.fsum(float(row.get("seconds", 0)) for row in self.steps)
            rows["optimizer steps"] = f"{len(self.steps):,}"
            rows["time in steps"] = _clock(seconds)
            rows["targets learnt"] = f"{sum(int(row.get('targets', 0)) for row in self.steps):,}"
            peak = max(int(row.get("memory", 0)) for row in self.steps)
            rows |= {"memory of the first process, at most": f"{peak / 2**30:.2f} GiB"} if peak else {}
        return rows

    def curve(self, split: str | None = None) -> list[tuple[float, float]]:
        """Step and loss, of the training or of a split."""
        rows = self.steps if split is None else [row for row in self.evaluations if row.get("split") == split]
        points = [(float(row["step"]), float(row.get("loss", math.nan))) for row in rows]
        return [point for point in points if math.isfinite(point[1])]


def read_history(folder: RunFolder) -> History:
    """What is there; a file that is not, or cannot be read, says nothing."""
    splits = read_object(folder.splits)
    rows = list(_lines(folder.metrics))
    steps = {row["step"]: row for row in rows if "split" not in row}  # a resumed run may have told a step again
    evaluations = {(row["step"], row["split"]): row for row in rows if "split" in row}
    digest = hashlib.sha256(folder.splits.read_bytes()).hexdigest() if splits else ""
    return History(splits, digest, tuple(steps.values()), tuple(evaluations.values()), read_status(folder.status))


def _with_digest(told: list[str], source: Mapping[str, Any]) -> str:
    digest = str(source.get("digest") or "").split(".")[0]
    return ", ".join([*told, *([f"sha256 {digest}"] if digest else [])])


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def _lines(file: Path) -> Iterator[dict[str, Any]]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:  # the last line of a run that was killed
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            yield row
