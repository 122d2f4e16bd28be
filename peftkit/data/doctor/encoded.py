"""A row as the task encodes it, once without a limit and, if it is too long, once with it: what the model's checks ask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from peftkit.data.doctor.sheet import TRAIN, Case, Reading, Sheet
from peftkit.errors import DataError
from peftkit.tasks import Task
from peftkit.tasks.base import IGNORED, Features, LabelError, Row, RowError

ENDLESS = 1 << 20


@dataclass(frozen=True)
class Encoded:
    """What became of a row."""

    reason: str = ""
    """Why the task refuses it, whatever its length."""
    wrong_label: bool = False
    length: int = 0
    unknown: int = 0
    targets: int = 1
    targets_within: int = 1
    """Targets that are left within the limit."""
    cut: bool = False
    first: tuple[int, ...] = ()
    last_target: int | None = None
    """The last token that is learnt, where tokens are."""


def encoded(case: Case, sheet: Sheet) -> list[Encoded]:
    """Every row's; none for tasks whose rows are no text, or without a tokenizer."""
    reading = case.reading
    if reading is None or sheet.task.reads != "text" or not sheet.needed:
        return []
    task = fitted(case, sheet.task)
    kind = ("encoded", repr(getattr(task, "labels", None)))
    return case.each(kind, sheet, lambda row: encode(row, task, reading))


def fitted(case: Case, task: Task) -> Task:
    """The task with its labels read from the training rows, as far as these allow."""
    rows = [row for sheet in case.of(TRAIN) if sheet.task.name == task.name for row in sheet.rows]
    try:
        return task.fit(rows)
    except Exception:  # rows are dirty here: other checks say how
        return task


def encode(row: Row, task: Task, reading: Reading) -> Encoded:
    """One row's. Whatever a row makes a task raise is a finding, never an end."""
    try:
        whole = task.windows(row, reading.processor, ENDLESS, reading.stride)
    except LabelError as problem:
        return Encoded(str(problem), wrong_label=True)
    except (RowError, DataError) as problem:
        return Encoded(str(problem))
    except Exception as problem:
        return Encoded(f"the task fails on it ({type(problem).__name__})")
    ids = [one for window in whole for one in window.get("input_ids", [])]
    targets, last = _targets(whole)
    long = len(ids) > reading.max_length
    within = _within(row, task, reading) if long else None
    return Encoded(
        length=len(ids),
        unknown=_unknown(ids, reading.processor),
        targets=targets,
        targets_within=targets if within is None else within[0],
        cut=within is not None and within[1],
        first=tuple(ids[:2]),
        last_target=last,
    )


def _within(row: Row, task: Task, reading: Reading) -> tuple[int, bool]:
    """Targets within the limit, and whether something is cut (several windows hold all of a row)."""
    try:
        windows = task.windows(row, reading.processor, reading.max_length, reading.stride)
    except Exception:
        return 0, True
    return _targets(windows)[0], len(windows) == 1


def _targets(windows: Sequence[Features]) -> tuple[int, int | None]:
    """How many labels count, and the last token among them; one where the task keeps them under other names."""
    if not all("labels" in window for window in windows):
        return 1, None
    found: list[Any] = []
    for window in windows:
        labels = window["labels"]
        found += [label for label in labels if label != IGNORED] if isinstance(labels, list) else [labels]
    tokens = windows[-1]["labels"]
    return len(found), found[-1] if found and isinstance(tokens, list) and isinstance(found[-1], int) else None


def _unknown(ids: list[int], processor: Any) -> int:
    unknown = getattr(processor, "unk_token_id", None)
    fillers = {getattr(processor, name, None) for name in ("pad_token_id", "eos_token_id", "bos_token_id")}
    return 0 if unknown is None or unknown in fillers else ids.count(unknown)
