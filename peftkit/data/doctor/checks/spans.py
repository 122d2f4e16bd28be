"""Answers that do not stand where they are said to stand, and answers that no window of the context holds whole."""

from __future__ import annotations

from collections.abc import Iterator

from peftkit.data.doctor.check import check
from peftkit.data.doctor.finding import Finding, Remedy, drop
from peftkit.data.doctor.sheet import Case, Reading, Sheet
from peftkit.data.doctor.values import answers_of, with_answers
from peftkit.tasks import Task
from peftkit.tasks.base import Row, RowError

COLUMNS = {"context", "question", "answers"}


@check("spans", "fill", "drop")
def spans(case: Case) -> Iterator[Finding]:
    """Answers that do not stand in the context where the row says."""
    for sheet in _sheets(case):
        wrong = [at for at, row in enumerate(sheet.rows) if _read(row) and not _stands(row)]
        mended = {at: new for at in wrong if (new := _moved(sheet.rows[at]))}
        lost = [at for at in wrong if at not in mended]
        fill = Remedy("fill", "take the start at which the answer stands once", mended)
        remedies = (*([fill] if mended else []), *([drop(lost)] if lost else []))
        yield Finding(sheet, "error", wrong, "the context has another text where the answer is said to stand", remedies)


@check("spans_cut", "drop", model=True)
def spans_cut(case: Case) -> Iterator[Finding]:
    """Answers that fall out where the context is cut."""
    for sheet in _sheets(case):
        reading = case.reading
        if reading is None or not getattr(reading.processor, "is_fast", False):
            continue
        whole = [at for at, row in enumerate(sheet.rows) if _read(row) and _stands(row)]
        rows = [at for at in whole if _is_cut(sheet.rows[at], reading, sheet.task)]
        means = f"within {reading.max_length} tokens the answer is cut off, so no position is right"
        advice = "--data.max_length, if the model takes more"
        yield Finding(sheet, "warning", rows, means, (drop(rows),), advice)


def _sheets(case: Case) -> list[Sheet]:
    return [sheet for sheet in case.sheets if set(sheet.columns) >= COLUMNS]


def _read(row: Row) -> list[tuple[str, int]]:
    """The answers, if the row has well-formed ones and texts around them; the kinds are another check's."""
    answers = answers_of(row.get("answers")) or []
    formed = all(isinstance(text, str) and isinstance(start, int) for text, start in answers)
    return answers if formed and all(isinstance(row.get(name), str) for name in ("context", "question")) else []


def _stands(row: Row) -> bool:
    return all(start >= 0 and row["context"][start : start + len(text)] == text for text, start in _read(row))


def _moved(row: Row) -> Row | None:
    """The answers at the places where they do stand; None if one stands nowhere, or at several places."""
    context, moved = row["context"], []
    for text, start in _read(row):
        right = start >= 0 and context[start : start + len(text)] == text
        if not right and (not text or context.count(text) != 1):
            return None
        moved.append((text, start if right else context.index(text)))
    return {"answers": with_answers(row["answers"], moved)}


def _is_cut(row: Row, reading: Reading, task: Task) -> bool:
    """Whether the answer is in no window, as the task cuts them, or not in the one piece that is read of the context."""
    if type(task).windows is Task.windows:
        held = _held(row, reading)
        return not any(held[0] <= start and start + len(text) <= held[1] for text, start in _read(row))
    try:
        task.windows(row, reading.processor, reading.max_length, reading.stride)
    except RowError:
        return True
    except Exception:  # the task fails on it, which another check says
        return False
    return False


def _held(row: Row, reading: Reading) -> tuple[int, int]:
    """First and last+1 character of the context that are read."""
    try:
        encoded = reading.processor(
            row["question"], row["context"], truncation="only_second", max_length=reading.max_length,
            return_offsets_mapping=True, verbose=False,
        )  # fmt: skip
    except Exception:  # a question that fills everything: tokenizers panic in several ways
        return 0, 0
    pairs = zip(encoded["offset_mapping"], encoded.sequence_ids(0), strict=True)
    held = [span for span, part in pairs if part == 1]
    return (held[0][0], held[-1][1]) if held else (0, 0)
