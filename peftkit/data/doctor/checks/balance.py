"""Labels that are rare beside the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from peftkit.data.doctor.check import check
from peftkit.data.doctor.checks.labels import shown
from peftkit.data.doctor.finding import Finding
from peftkit.data.doctor.sheet import TRAIN, Case
from peftkit.data.doctor.values import are_numbers, label_names

RATIO = 10
"""How many times rarer than the most frequent label one must be, and more."""


@check("balance")
def balance(case: Case) -> Iterator[Finding]:
    """Rare labels; with counts by label."""
    for sheet in case.of(TRAIN):
        column = next((name for name in ("label", "labels") if name in sheet.columns), None)
        if column is None or are_numbers(row.get(column) for row in sheet.rows):
            continue
        names = [label_names(row.get(column)) for row in sheet.rows]
        counts = Counter(name for found in names for name in found)
        rare = {name for name in counts if counts[name] * RATIO < max(counts.values())}
        rows = [at for at, found in enumerate(names) if rare & set(found)]
        order = counts.most_common()
        told = ", ".join(f"{shown(name)} {count}" for name, count in [*order[:1], *reversed(order[1:])][:8])
        means = f"labels more than {RATIO} times rarer than the most frequent one ({told})"
        advice = (
            "--data.balance oversample or weighted; score with a metric that counts every label (f1, balanced_accuracy)"
        )
        yield Finding(sheet, "warning", rows, means, advice=advice)
