"""A comparison on the terminal: numbers with their tests, groups, and the rows that changed most, word by word."""

from __future__ import annotations

import math
from collections.abc import Iterator

from rich.console import Group as Together
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from peftkit.evaluation.bootstrap import Interval
from peftkit.evaluation.changes import KINDS, Change, word_diff
from peftkit.evaluation.paired import Difference
from peftkit.printable import printable
from peftkit.report.comparison import Comparison, unread_lines, verdict_of
from peftkit.tracking.console import short

STYLES = {"better": "green", "worse": "red"}
WORDS = {"both": "", "after": "bold green"}
LONGEST = 600
"""Characters of a text that are shown."""


def shown(comparison: Comparison, rows: int) -> Iterator[RenderableType]:
    """Everything, with so many of the changed rows."""
    for side in comparison.sides:
        yield Text(f"{side.label}: {side.name}")
    count = len(comparison.changes)
    yield Text(f"{count:,} row{'s' * (count != 1)} of {comparison.data}, --task {comparison.task}")
    for line in (*unread_lines(comparison.sides), *comparison.notes):
        yield Text("warning: ", style="yellow").append(printable(line), style="default")
    yield numbers(comparison)
    yield Text(caption(comparison.differences, comparison.samples), style="dim")
    if comparison.groups:
        yield groups(comparison)
    yield Text(", ".join(f"{count:,} {kind}" for kind, count in comparison.counts.items()))
    first = (comparison.changed or list(comparison.changes))[:rows]
    yield from (one_row(change, comparison) for change in first)


def numbers(comparison: Comparison) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    labels = [side.label for side in comparison.sides]
    for name in ("", *labels, "difference", "p", "corrected", ""):
        # Where there is no room, intervals are wrapped, and nothing is cut.
        table.add_column(Text(name), justify="right" if name else "left", no_wrap=name not in (*labels, "difference"))
    for one in comparison.differences:
        ends = one.intervals or (None, None, None)
        told = verdict_of(one, labels[1])
        cells = zip((one.before, one.after, one.difference), ends, (False, False, True), strict=True)
        table.add_row(
            Text(one.name),
            *(
                Text("\n").join([Text(signed_short(value) if sign else short(value)), Text(between(own), style="dim")])
                for value, own, sign in cells
            ),
            odds(one.p),
            odds(one.adjusted),
            Text(told, style=STYLES.get(one.verdict, "")),
        )
    return table


def caption(differences: tuple[Difference, ...], samples: int) -> str:
    """How the numbers came about."""
    tests = dict.fromkeys(one.test for one in differences if one.test)
    how = {"McNemar": "McNemar's exact test", "permutation": f"a paired permutation test ({samples:,} exchanges)"}
    by = " or ".join(how[test] for test in tests)
    return f"95 % intervals by paired bootstrap; p by {by}, corrected by Holm's method" if by else ""


def signed_short(value: float) -> str:
    """With its sign, also above zero."""
    return f"{'+' if value > 0 else ''}{short(value)}"


def between(ends: Interval | None) -> str:
    """An interval as one reads it; nothing where there is none."""
    return "" if ends is None or math.isnan(ends[0]) else f"{ends[0]:.3g} to {ends[1]:.3g}"


def odds(p: float) -> str:
    """A p-value as one reads it."""
    if math.isnan(p):
        return ""
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def groups(comparison: Comparison) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in (comparison.by or "", "rows", "", *(side.label for side in comparison.sides), "difference"):
        table.add_column(Text(name), justify="left" if name in ("", comparison.by) else "right")
    for group in comparison.groups:
        value, count = printable(group.value), f"{group.rows:,}"
        for name, before, after in group.numbers:
            table.add_row(Text(value), count, Text(name), short(before), short(after), f"{after - before:+.4g}")
            value = count = ""  # said once
    return table


def one_row(change: Change, comparison: Comparison) -> RenderableType:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column()
    table.add_column(overflow="fold")
    losses = change.losses and f"loss {short(change.losses[0])} -> {short(change.losses[1])}"
    title = "  ".join(filter(None, (change.place, f"{change.kind}: {KINDS[change.kind]}", losses)))
    for name, text, style in (
        ("asked", change.asked, "dim"),
        ("expected", change.truth, ""),
        (comparison.before.label, change.before, ""),
    ):
        if text:
            table.add_row(Text(name), Text(cut(text.strip()), style=style))
    if change.before or change.after:
        table.add_row(Text(comparison.after.label), marked(change))
    return Together(Text(""), Text(printable(title), style="bold"), table)


def marked(change: Change) -> Text:
    """The second answer, with what it has not from the first."""
    if change.before == change.after:
        return Text("the same", style="dim")
    found = Text()
    for what, words in word_diff(change.before, change.after):
        if what != "before":
            found.append(printable(words), style=WORDS[what])
    found.truncate(LONGEST, overflow="ellipsis")
    return found


def cut(text: str) -> str:
    text = printable(text)
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."
