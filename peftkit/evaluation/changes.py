"""What became of each row between two models: fixed, broken, wrong in another way, the same; and in which words."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any, Literal

from peftkit.metrics import Accuracy, Tally, TextExactMatch
from peftkit.metrics.answers import ExactMatch
from peftkit.metrics.labels import is_several
from peftkit.tasks import Task
from peftkit.tasks.base import Record, Row

Kind = Literal["fixed", "broken", "otherwise wrong", "same", "nearer", "farther"]
KINDS: dict[Kind, str] = {
    "fixed": "wrong before, right now",
    "broken": "right before, wrong now",
    "otherwise wrong": "wrong in both, with another answer",
    "nearer": "nearer to the truth",
    "farther": "farther from the truth",
    "same": "as before",
}
"""In the order in which they are shown. A row is nearer or farther where no answer is simply right: numbers, mere losses."""

Piece = tuple[Literal["both", "before", "after"], str]
WORDS = re.compile(r"\s+|\w+|[^\w\s]")
LONGEST = 2000
"""Words of a text that are compared one by one: the time grows with their square."""


@dataclass(frozen=True)
class Change:
    """One row, answered by both."""

    row: int
    """Its number among the rows that were compared, from 0."""
    place: str
    """`reviews.csv line 7`."""
    kind: Kind
    asked: str
    """What the models were given."""
    truth: str
    before: str
    after: str
    """The answers in words; empty where the task has none."""
    losses: tuple[float, float] | None = None
    """Per target, of both; None where the two count other targets."""
    group: str | None = None
    """The value of the column by which rows are grouped."""


def kind_of(before: Record, after: Record) -> Kind:
    """What became of a row."""
    rights = is_right(before), is_right(after)
    if None in rights:
        return nearer_or_farther(before, after)
    if rights[0] != rights[1]:
        return "fixed" if rights[1] else "broken"
    return "same" if rights[1] or answer_of(before) == answer_of(after) else "otherwise wrong"


def is_right(record: Record) -> bool | None:
    """Whether the answer is a right one; None where none is simply right, or the truth is not known."""
    if record.get("tags") is not None and "predicted_tags" in record:
        return list(record["tags"]) == list(record["predicted_tags"])
    if record.get("margin") is not None:
        return bool(record["margin"] > 0)
    if "prediction" in record and is_number(record.get("label")):
        return None
    judges: tuple[Tally, ...] = (Accuracy(), ExactMatch(), TextExactMatch())
    for judge in judges:
        if all(record.get(name) is not None for name in judge.needs):
            found = judge.compute([record])[judge.name]
            return None if math.isnan(found) else found == 1
    return None


def nearer_or_farther(before: Record, after: Record) -> Kind:
    """By the distance of numbers from the true ones; else by the row's loss."""
    gaps = [gap_of(one) for one in (before, after)]
    if gaps[0] == gaps[1] or any(map(math.isnan, gaps)):
        return "same"
    return "nearer" if gaps[1] < gaps[0] else "farther"


def gap_of(record: Record) -> float:
    label, said = record.get("label"), record.get("prediction")
    if label is None or said is None or not is_number(label):
        return loss_of(record)
    pairs = zip(label, said, strict=True) if is_several(label) else [(label, said)]
    return math.fsum(abs(true - found) for true, found in pairs)


def is_number(label: Any) -> bool:
    """Whether a label is a number, or several."""
    return isinstance(label, float) or (is_several(label) and bool(label) and all(isinstance(x, float) for x in label))


def loss_of(record: Record) -> float:
    """Of a row, per target."""
    return float(record["loss"] / record["targets"]) if record.get("targets") else math.nan


def losses_of(before: Record, after: Record) -> tuple[float, float] | None:
    """Of both; None if they count other targets (other tokenizers), as they are not of the same things then."""
    alike = before.get("targets") == after.get("targets")
    return (loss_of(before), loss_of(after)) if alike and before.get("targets") else None


ANSWERS = {"prediction": "label", "predicted_tags": "tags", "answer": "answers", "generated": "reference"}
"""Where an answer stands in a record, and where the truth."""


def answer_of(record: Record) -> str:
    """The model's answer in words."""
    if record.get("margin") is not None:
        return "chosen" if record["margin"] > 0 else "rejected"
    return next((in_words(record[name]) for name in ANSWERS if record.get(name) is not None), "")


def truth_of(record: Record) -> str:
    """The true answer, or several of them one below the other."""
    if record.get("margin") is not None:
        return "chosen"
    found = next((record.get(truth) for name, truth in ANSWERS.items() if name in record), None)
    several = isinstance(found, (list, tuple)) and ("answer" in record or "generated" in record)
    return "\n".join(map(str, found)) if several and found else in_words(found)


def in_words(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    if value == []:
        return "(none)"
    return " ".join(in_words(one) for one in value) if isinstance(value, (list, tuple)) else str(value)


def asked_of(row: Row, task: Task) -> str:
    """What the row asks, without what is learnt of it: its columns, and of a conversation all turns before the last answer."""
    if isinstance(messages := row.get("messages"), list):
        stop = max((at for at, one in enumerate(messages) if _role(one) in ("assistant", "gpt")), default=len(messages))
        return "\n".join(f"{_role(one)}: {one.get('content', one.get('value', ''))}" for one in messages[:stop])
    shown = [row[name] for name in task.columns if name not in task.given and row.get(name) not in (None, "")]
    return "\n".join(in_words(value) for value in shown)


def _role(message: Any) -> str:
    return str(message.get("role", message.get("from", ""))) if isinstance(message, dict) else ""


def word_diff(before: str, after: str) -> Iterator[Piece]:
    """Both texts as one: what they share, what only the first has, what only the second has.

    >>> list(word_diff("a small cat", "a big cat"))
    [('both', 'a '), ('before', 'small'), ('after', 'big'), ('both', ' cat')]
    """
    one, other = WORDS.findall(before), WORDS.findall(after)
    if max(len(one), len(other)) > LONGEST:
        whole: list[Piece] = [("before", before), ("after", after)]
        same: list[Piece] = [("both", before)]
        yield from same if before == after else whole
        return
    for what, left, right, first, last in SequenceMatcher(None, one, other, autojunk=False).get_opcodes():
        if what == "equal":
            yield "both", "".join(one[left:right])
            continue
        if left < right:
            yield "before", "".join(one[left:right])
        if first < last:
            yield "after", "".join(other[first:last])


def counts(changes: Sequence[Change]) -> dict[Kind, int]:
    """How many rows there are of each kind that occurs, in the kinds' order."""
    found = {kind: sum(change.kind == kind for change in changes) for kind in KINDS}
    return {kind: count for kind, count in found.items() if count}
