"""Sudden losses: how far a loss lies above those just before it, measured by how far the last ones did. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median

WINDOW = 100
"""So many last losses say what is usual."""
NEAR = 15
"""A loss is held against the median of so many before it, so that the curve's fall is not taken for its spread."""
ENOUGH = 25
"""Fewer losses say nothing."""
NORMAL = 1.4826
"""The standard deviation of a normal distribution, in median deviations from its median."""
TAIL = 1.6449
"""The upper twentieth of a normal distribution begins so many standard deviations above its mean."""
LEAST = 0.02
"""Losses that all but stay where they are still vary by this share."""


def spike(loss: float, last: Sequence[float], threshold: float) -> float | None:
    """How many spreads `loss` lies above the `last` losses, if that is more than `threshold`; 0 finds none.

    Losses that are all above zero are also compared by their logarithms, and the smaller answer counts: the losses of
    small batches that are nearly learnt vary by factors.
    """
    if not threshold or len(last) < ENOUGH:
        return None
    times = surprise(loss, last, LEAST * abs(median(last[-NEAR:])))
    if min(loss, *last) > 0:
        times = min(times, surprise(math.log(loss), [math.log(value) for value in last], LEAST))
    return times if times > threshold else None


def surprise(value: float, last: Sequence[float], least: float) -> float:
    """The distance of `value` from the median of those just before it, in spreads of the same distance of the last ones.

    The spread is the largest of what the middle half and the upper twentieth of the distances say, and `least`.
    """
    usual = [last[at] - median(last[max(0, at - NEAR) : at]) for at in range(NEAR, len(last))]
    middle = median(usual)
    inner = NORMAL * median(abs(one - middle) for one in usual)
    upper = sorted(usual)[-(-len(usual) * 19 // 20) - 1] / TAIL
    spread = max(inner, upper, least)
    return (value - median(last[-NEAR:])) / spread if spread else 0.0
