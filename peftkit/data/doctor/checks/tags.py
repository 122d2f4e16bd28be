"""Tag sequences that their scheme does not allow (IOB1, IOB2, IOBES or BILOU, as the training rows show)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

from peftkit.data.doctor.check import check
from peftkit.data.doctor.finding import Finding, Remedy
from peftkit.data.doctor.sheet import TRAIN, Case, Sheet

Span = tuple[int, int, str]
SAME = {"L": "E", "U": "S"}
NAMES = {"iob1": "IOB1", "iob2": "IOB2", "iobes": "IOBES", "bilou": "BILOU"}


@check("tags", "fill")
def tags(case: Case) -> Iterator[Finding]:
    """Tags that their scheme does not allow.

    A sequence is valid exactly if reading its entities and writing them again gives the same tags.
    """
    for sheet in case.sheets:
        if "tags" not in sheet.columns:
            continue
        rows = {at: row["tags"] for at, row in enumerate(sheet.rows) if is_scheme(row.get("tags"))}
        scheme = scheme_of([row.get("tags") for one in case.of(TRAIN) or [sheet] for row in one.rows], sheet)
        mended = {at: rewrite(tags, scheme) for at, tags in rows.items()}
        wrong = {at: {"tags": new} for at, new in mended.items() if new != rows[at]}
        means = f"tags that {NAMES[scheme]} does not allow (an entity that goes on where none began, or never ends)"
        fill = Remedy("fill", f"write the entities again as {NAMES[scheme]}", wrong)
        yield Finding(sheet, "error", list(wrong), means, (fill,))


def is_scheme(value: Any) -> bool:
    """Whether these are tags with prefixes (class numbers and plain tags have no sequence to break)."""
    if not isinstance(value, list) or not all(isinstance(tag, str) for tag in value):
        return False
    return all(tag == "O" or (tag[1:2] == "-" and tag[0] in "BIESLU") for tag in value)


def scheme_of(values: Sequence[Any], sheet: Sheet) -> str:
    """The scheme that the task names, else the one that most entities are written in."""
    named = str(getattr(sheet.task, "scheme", "") or "").lower()
    if named in NAMES:
        return named
    found = [tags for tags in values if is_scheme(tags)]
    prefixes = {tag[0] for tags in found for tag in tags}
    if prefixes & set("LU"):
        return "bilou"
    if prefixes & set("ES"):
        return "iobes"
    starts = [tags[start][0] for tags in found for start, _, _ in entities(tags)]
    return "iob1" if starts.count("I") > len(starts) / 2 else "iob2"


def rewrite(tags: Sequence[str], scheme: str) -> list[str]:
    """The same entities, as the scheme writes them."""
    written = ["O"] * len(tags)
    found = entities(tags)
    for at, (start, end, kind) in enumerate(found):
        touches = at > 0 and found[at - 1][1] == start and found[at - 1][2] == kind
        for place, letter in enumerate(_letters(end - start, scheme, touches), start=start):
            written[place] = f"{letter}-{kind}"
    return written


def _letters(length: int, scheme: str, touches: bool) -> str:
    if scheme == "iob1":
        return ("B" if touches else "I") + "I" * (length - 1)
    if scheme == "iob2":
        return "B" + "I" * (length - 1)
    single, last = ("U", "L") if scheme == "bilou" else ("S", "E")
    return single if length == 1 else "B" + "I" * (length - 2) + last


def entities(tags: Sequence[str]) -> list[Span]:
    """First and last+1 word and type of each entity, as a lenient reader (conlleval's) sees them."""
    starts = [at for at, (before, here) in enumerate(pairwise(["O", *tags])) if _begins(before, here)]
    found = []
    for start in starts:
        end = start + 1
        while end < len(tags) and tags[end] != "O" and not _begins(tags[end - 1], tags[end]):
            end += 1
        found.append((start, end, tags[start][2:]))
    return found


def _begins(before: str, here: str) -> bool:
    if here == "O":
        return False
    ended = before == "O" or SAME.get(before[0], before[0]) in "ES"
    return ended or SAME.get(here[0], here[0]) in "BS" or before[2:] != here[2:]
