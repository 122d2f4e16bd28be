"""What becomes of rows as tokens: refused, cut, without a target, full of words that the tokenizer does not know."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from peftkit.data.doctor.check import check
from peftkit.data.doctor.checks.missing import is_empty, lacks
from peftkit.data.doctor.encoded import encoded
from peftkit.data.doctor.finding import Finding, drop
from peftkit.data.doctor.sheet import Case

UNKNOWN = 0.1
"""Share of a row's tokens."""


@check("refused", "drop", model=True)
def refused(case: Case) -> Iterator[Finding]:
    """Rows that the task cannot encode, by reason; empty ones, and labels, are found without a model."""
    for sheet in case.sheets:
        reasons = defaultdict(list)
        for at, one in enumerate(encoded(case, sheet)):
            row = sheet.rows[at]
            if one.reason and not one.wrong_label and not is_empty(row) and not lacks(sheet, row):
                reasons[one.reason].append(at)
        for reason, rows in reasons.items():
            yield Finding(sheet, "warning", rows, f"not learnt from: {reason}", (drop(rows),))


@check("no_targets", "drop", model=True)
def no_targets(case: Case) -> Iterator[Finding]:
    """Rows of which nothing is learnt: every target is masked, or cut off."""
    for sheet in case.sheets:
        found = encoded(case, sheet)
        cut = [at for at, one in enumerate(found) if not one.reason and one.targets and not one.targets_within]
        masked = [at for at, one in enumerate(found) if not one.reason and not one.targets]
        limit = case.reading.max_length if case.reading else 0
        means = f"no target is left within {limit} tokens"
        yield Finding(sheet, "warning", cut, means, (drop(cut),), "--data.max_length, if the model takes more")
        yield Finding(sheet, "warning", masked, "every target is masked", (drop(masked),))


@check("truncated", "drop", model=True)
def truncated(case: Case) -> Iterator[Finding]:
    """Rows longer than the limit, of which the rest is cut off."""
    for sheet in case.sheets:
        found = encoded(case, sheet)
        rows = [at for at, one in enumerate(found) if one.cut]
        limit = case.reading.max_length if case.reading else 0
        means = f"cut to {limit} tokens; the longest has {max((one.length for one in found), default=0)}"
        advice = "--data.max_length, if the model takes more; --data.truncate left keeps the end"
        yield Finding(sheet, "note", rows, means, (drop(rows, asked=True),), advice)


@check("unknown_tokens", "drop", model=True)
def unknown_tokens(case: Case) -> Iterator[Finding]:
    """Rows of which a tenth or more is unknown to the tokenizer."""
    for sheet in case.sheets:
        found = encoded(case, sheet)
        rows = [at for at, one in enumerate(found) if one.unknown > UNKNOWN * one.length]
        rate = sum(one.unknown for one in found) / max(1, sum(one.length for one in found))
        means = f"more than {UNKNOWN:.0%} of the tokens are unknown to the tokenizer ({rate:.2%} of all rows' tokens)"
        advice = "another --model, or --model.add_tokens"
        yield Finding(sheet, "warning", rows, means, (drop(rows, asked=True),), advice)
