"""The same input with different labels, and the same pair preferred both ways."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterator, Sequence

from peftkit.data.doctor.check import check
from peftkit.data.doctor.finding import Finding, Remedy, drop
from peftkit.data.doctor.sheet import TRAIN, Case, Sheet
from peftkit.data.doctor.values import LABELS, answers_of, canonical, inputs, is_missing, label_names, loosened, texts
from peftkit.tasks.base import Row

DECIDED = (*LABELS, "answers")
"""Columns in which one input has one truth. (A prompt, or a sentence to translate, has many.)"""


@check("conflicts", "drop")
def conflicts(case: Case) -> Iterator[Finding]:
    """Rows of one source with equal inputs whose targets differ. What most of them say is kept; of a tie nothing is."""
    for sheet in case.sheets:
        if not any(column in sheet.columns for column in DECIDED):
            continue
        keys = case.each("inputs", sheet, lambda row: loosened(inputs(row)))
        truths = case.each("truth", sheet, truth)
        rows, minority = disagreeing(keys, truths)
        yield Finding(sheet, "warning", rows, "the same input has different labels", (_remedy(sheet, minority),))


@check("swapped", "drop")
def swapped(case: Case) -> Iterator[Finding]:
    """Pairs that are preferred both ways."""
    for sheet in case.sheets:
        if not {"chosen", "rejected"} <= set(sheet.columns):
            continue
        keys = case.each("pair", sheet, lambda row: canonical({"pair": sorted(_answers(row)), "of": inputs(row)}))
        truths = case.each(
            "order", sheet, lambda row: tuple(_answers(row)) if not is_missing("", row.get("chosen")) else None
        )
        rows, minority = disagreeing(keys, truths)
        yield Finding(sheet, "warning", rows, "what one row chooses another one rejects", (_remedy(sheet, minority),))


def truth(row: Row) -> Hashable:
    """What the row says of its input, in a form that compares; None if it says nothing."""
    for column in DECIDED:
        value = row.get(column)
        if column == "answers" and answers_of(value) is not None:
            return tuple(sorted({str(text) for text, _ in answers_of(value) or []}))
        if not is_missing(column, value):
            return tuple(label_names(value)) or None
    return None


def disagreeing(keys: Sequence[Hashable], truths: Sequence[Hashable]) -> tuple[list[int], list[int]]:
    """The rows of every group of equal keys that differ in their truths, and those of them that the majority outvotes."""
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for at, (key, said) in enumerate(zip(keys, truths, strict=True)):
        if key is not None and said is not None:
            groups[key].append(at)
    rows, minority = [], []
    for group in groups.values():
        votes = Counter(truths[at] for at in group).most_common(2)
        if len(votes) > 1:
            kept = votes[0][0] if votes[0][1] > votes[1][1] else None
            rows += group
            minority += [at for at in group if truths[at] != kept]
    return sorted(rows), sorted(minority)


def _answers(row: Row) -> list[str]:
    found = texts(row)
    return [
        found.get("chosen", found.get("chosen answers", "")),
        found.get("rejected", found.get("rejected answers", "")),
    ]


def _remedy(sheet: Sheet, minority: Sequence[int]) -> Remedy:
    return drop(minority, "keep what most of them say, and of a tie nothing", asked=sheet.split != TRAIN)
