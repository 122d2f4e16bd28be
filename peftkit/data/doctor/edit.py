"""A row's strings changed, and what hangs on their positions moved with them."""

from __future__ import annotations

from collections.abc import Callable

from peftkit.data.doctor.values import answers_of, mapped, with_answers
from peftkit.tasks.base import Row

FILES = ("image", "audio")


def edited(row: Row, change: Callable[[str], str], but: tuple[str, ...] = FILES) -> Row:
    """The columns that `change` changes, with their new values; answers stay on the words on which they stood."""
    new = {column: mapped(value, change) for column, value in row.items() if column not in but}
    new = {column: value for column, value in new.items() if value is not row[column] and value != row[column]}
    answers = answers_of(row.get("answers"))
    if "context" in new and answers and isinstance(row["context"], str):
        new["answers"] = _moved(row, new["context"], change, answers)
    return new


def _moved(row: Row, context: str, change: Callable[[str], str], answers: list[tuple[object, object]]) -> object:
    moved = []
    for text, start in answers:
        if isinstance(text, str) and isinstance(start, int):
            text, start = change(text), _nearest(context, change(text), len(change(row["context"][: max(start, 0)])))
        moved.append((text, start))
    return with_answers(row["answers"], moved)


def _nearest(context: str, text: str, start: int) -> int:
    """Where the text stands nearest to `start`; `start` itself where it stands nowhere."""
    places = [at for at in range(len(context)) if context.startswith(text, at)] if text else []
    return min(places, key=lambda at: abs(at - start), default=start)
