"""`peftkit verify FOLDER`: whether an export is what was certified. 0 if it is, 1 if it is not."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from peftkit.cli.screen import stdout
from peftkit.cli.words import Parser, allow_code


def run(words: list[str]) -> int:
    """Check an export, on any machine."""
    told = (
        "Check an export: its files, its base, and what it answers, against its certificate. 0 if all is well, else 1."
    )
    parser = Parser("verify", told)
    parser.add_argument(
        "folder", metavar="FOLDER", type=Path, help="RUN/export/NAME or a copy of it, or what peftkit merge wrote"
    )
    base = "folder or hub name of an adapter's or a merge's base (default: where it lay then)"
    parser.add_argument("--base", help=base)
    parser.add_argument("--rows", metavar="FILE", help="also score it on the first 64 of these rows")
    parser.add_argument("--full", action="store_true", help="hash the base anew, and score all of --rows")
    forced = "let an export pass that was kept by `peftkit export --force`"
    parser.add_argument("--accept_forced", "--accept-forced", action="store_true", help=forced)
    parser.add_argument("--json", action="store_true", help="print the verdict as JSON")
    allow_code(parser)
    parser.add_argument("--verbose", action="store_true", help="show libraries' messages and tracebacks")
    asked = parser.read(words)
    if asked is None:
        return 0
    from peftkit.flows.verify import Asked, table, verify

    verdict = verify(
        asked.folder, Asked(asked.base, asked.rows, asked.full, asked.accept_forced, asked.trust), asked.verbose
    )
    console = stdout()
    if asked.json:
        sys.stdout.write(json.dumps(verdict.to_json(), indent=1) + "\n")
    else:
        console.print(table(verdict))
        for problem in verdict.problems:
            console.print(f"  • {problem}", style="red", markup=False, soft_wrap=True)
        console.print("verified" if verdict.ok else "NOT VERIFIED", style="bold green" if verdict.ok else "bold red")
    return 0 if verdict.ok else 1
