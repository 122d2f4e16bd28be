"""Texts that are far longer than the others (in characters; the model's own limit is the check `truncated`)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from statistics import quantiles

from peftkit.data.doctor.check import check
from peftkit.data.doctor.finding import Finding, drop
from peftkit.data.doctor.sheet import Case
from peftkit.data.doctor.values import texts

FEWEST = 20
FAR = 3
"""Quartile distances beyond the third quartile, of the lengths' logarithms."""
TIMES = 5
"""And so many times the median."""


@check("lengths", "drop")
def lengths(case: Case) -> Iterator[Finding]:
    """Rows that are outliers in length."""
    for sheet in case.sheets:
        sizes = case.each("size", sheet, lambda row: sum(map(len, texts(row).values())))
        present = [math.log(size) for size in sizes if size]
        if len(present) < FEWEST:
            continue
        first, middle, third = quantiles(present, n=4)
        limit = max(third + FAR * (third - first), middle + math.log(TIMES))
        rows = [at for at, size in enumerate(sizes) if size and math.log(size) > limit]
        means = f"longer than {round(math.exp(limit))} characters, where half the rows have at most {round(math.exp(middle))}"
        yield Finding(
            sheet, "note", rows, means, (drop(rows, asked=True),), advice="look at them: rows may have run together"
        )
