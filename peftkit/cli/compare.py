"""`peftkit compare A B --data ROWS`: two models side by side. `peftkit compare RUN`: its base, and what came of it."""

from __future__ import annotations

import argparse
from pathlib import Path

from peftkit.cli.evaluate import MODEL, add_reading, check_metrics, check_reading, reading
from peftkit.cli.words import Parser
from peftkit.errors import ConfigError, PeftkitError

TOLD = (
    "Two models on the same rows: metrics with paired tests, the rows that changed, and the texts side by side. One model alone"
    " is compared with what it was before it was trained; a run's folder without --data on its own held-out rows."
)


def run(words: list[str]) -> int:
    """Compare, show and write; 1 if `--fail-if-worse` finds the second worse."""
    asked = _parser().read(words)
    if asked is None:
        return 0
    _check(asked)
    from peftkit.flows.compare import Asked, compare, gate

    own = {"metrics": asked.metrics, "gate": asked.fail_if_worse, "by": asked.by, "samples": asked.samples}
    files = {"html": asked.html, "json": asked.json}
    found = compare(Asked(asked.models, asked.data, rows=asked.rows, **own, **files, **reading(asked)), asked.verbose)
    if asked.fail_if_worse and (problem := gate(found, asked.fail_if_worse)):
        raise PeftkitError(problem)
    return 0


def _parser() -> Parser:
    parser = Parser("compare", TOLD)
    parser.add_argument(
        "models",
        nargs="+",
        metavar="MODEL",
        help=f"{MODEL}; one of two may be a base: a hub name, or a folder with config.json",
    )
    parser.add_argument("--data", metavar="ROWS", help="a file, a folder, a URL or a hub name, with the true answers")
    parser.add_argument("--metrics", nargs="+", default=[], help="names, hub:NAME or a script (default: the task's)")
    worse = "exit with 1 if the second model is significantly worse by this metric, for a CI"
    parser.add_argument("--fail-if-worse", "--fail_if_worse", metavar="METRIC", help=worse)
    parser.add_argument("--by", metavar="COLUMN", help="score the column's values apart, too")
    parser.add_argument(
        "--samples", type=int, default=2000, help="drawn for intervals, exchanges of a test (default: 2000)"
    )
    shown = "changed rows that are shown; without --data also the held-out rows that are answered (default: 3)"
    parser.add_argument("--rows", type=int, default=3, help=shown)
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page with all of it, which needs no network")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all of it as JSON")
    add_reading(parser)
    return parser


def _check(asked: argparse.Namespace) -> None:
    if len(asked.models) > 2:
        raise ConfigError(f"peftkit compare takes one model or two, and these are {len(asked.models)}")
    check_reading(asked, "samples", "rows")
    check_metrics(asked.metrics)
    if asked.fail_if_worse:
        check_metrics([asked.fail_if_worse], "--fail-if-worse")
