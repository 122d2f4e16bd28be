"""A comparison with everything that its pages have to bear."""

from __future__ import annotations

import math
from typing import Any

from peftkit.evaluation.changes import Change
from peftkit.evaluation.paired import Difference
from peftkit.report.comparison import Comparison, Group, Side

HOSTILE = (
    "<script>window.hit = 1</script>",
    '"><img src=x onerror="window.hit = 1">',
    "</td></table></style><svg onload=window.hit=1>",
    "{{ 7 * 7 }} {% raw %} \x1b[2J \u202e",
)


def made(**changes: Any) -> Comparison:
    rows = [
        Change(
            at, f"{text} line {at}", kind, text, text, f"{text} one {at}", f"{text} other {at}", (2.0 + at, 1.0), text
        )
        for at, (text, kind) in enumerate(
            zip(HOSTILE, ("broken", "fixed", "otherwise wrong", "otherwise wrong"), strict=True)
        )
    ]
    rows.append(Change(4, "line 4", "same", "asked", "truth", "truth", "truth", None))
    values: dict[str, Any] = {
        "before": Side("A", HOSTILE[0], ((f"{HOSTILE[1]} line 9", "no 'text'"),)),
        "after": Side("B", "two"),
        "data": HOSTILE[2],
        "task": "chat",
        "differences": (
            Difference(
                "accuracy", 0.5, 0.75, True, ((0.4, 0.6), (0.7, 0.8), (0.1, 0.4)), "McNemar", 0.01, 0.02, (2, 1)
            ),
            Difference("loss", 1.0, math.inf, False, None, "permutation"),
        ),
        "changes": tuple(rows),
        "samples": 2000,
        "by": "language",
        "groups": (Group(HOSTILE[1], 5, (("accuracy", 0.5, 0.75),)),),
        "notes": ("a note",),
    }
    return Comparison(**{**values, **changes})
