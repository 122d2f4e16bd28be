"""A comparison as one HTML file that needs nothing else: no network, no other file, and no code but its own few lines.

Texts of rows and models are escaped by Jinja. Should one get through all the same, the page's own policy
(Content-Security-Policy, by the hashes of its style and its script) lets the browser neither run nor fetch anything.
"""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files
from typing import Any

from jinja2 import BaseLoader, Environment, StrictUndefined

from peftkit.evaluation.changes import KINDS, Piece, word_diff
from peftkit.evaluation.paired import Difference
from peftkit.report.comparison import Comparison, unread_lines, verdict_of
from peftkit.report.terminal import between, caption, odds, signed_short
from peftkit.tracking.console import short

MOST = 1000
"""Changed rows on a page: a browser shows and sorts so many at once."""


def page(comparison: Comparison) -> str:
    """The text of the file."""
    room = files("peftkit.report")
    style, script = ((room / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    environment = Environment(loader=BaseLoader(), autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    template = environment.from_string((room / "comparison.html").read_text(encoding="utf-8"))
    changed = comparison.changed
    return template.render(
        comparison=comparison,
        style=style,
        script=script,
        policy=policy(style, script),
        warnings=[*unread_lines(comparison.sides, first=20), *comparison.notes],
        differences=[row_of(one, comparison) for one in comparison.differences],
        caption=caption(comparison.differences, comparison.samples),
        kinds=KINDS,
        changed=[(change, *sides(change.before, change.after)) for change in changed[:MOST]],
        left_out=max(0, len(changed) - MOST),
        short=short,
    )


def policy(style: str, script: str) -> str:
    """What the browser lets the page do: this style and this script, and nothing else."""
    return f"default-src 'none'; style-src '{hashed(style)}'; script-src '{hashed(script)}'; base-uri 'none'; form-action 'none'"


def hashed(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def row_of(one: Difference, comparison: Comparison) -> dict[str, Any]:
    """A line of the table of numbers."""
    ends = one.intervals or (None, None, None)
    return {
        "name": one.name,
        "numbers": [
            (short(one.before), between(ends[0])),
            (short(one.after), between(ends[1])),
            (signed_short(one.difference), between(ends[2])),
        ],
        "p": odds(one.p),
        "adjusted": odds(one.adjusted),
        "verdict": one.verdict,
        "told": verdict_of(one, comparison.after.label),
    }


def sides(before: str, after: str) -> tuple[list[Piece], list[Piece]]:
    """Each answer in pieces: what both have, and what it has alone."""
    pieces = list(word_diff(before, after))
    return [one for one in pieces if one[0] != "after"], [one for one in pieces if one[0] != "before"]
