"""From which probability on a label is said: the threshold of the best F1 on rows that were not learnt."""

from __future__ import annotations

from collections.abc import Sequence

HALF = 0.5


def best_threshold(probabilities: Sequence[float], true: Sequence[bool]) -> float:
    """The threshold with the highest F1 of saying `p >= threshold`; a half if no row is true.

    Between two probabilities any threshold does the same, so the middle is taken: no row then hangs on a rounding.
    Of several with the same F1 the one nearest to a half is taken, and of two as near the higher.
    """
    positives = sum(true)
    pairs = sorted(zip(probabilities, true, strict=True), reverse=True)
    found: list[tuple[float, float, float]] = []
    hits = 0
    for said, (probability, right) in enumerate(pairs, start=1):
        hits += right
        below = pairs[said][0] if said < len(pairs) else 0.0
        if below < probability or said == len(pairs):
            middle = (probability + below) / 2
            found.append((-2 * hits / (said + positives), abs(middle - HALF), -middle))
    return -min(found)[2] if positives else HALF
