"""What is wrong with the rows, and rows without it: `peftkit data check --data.train reviews.jsonl --fix reviews-fixed`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from peftkit.config.run import Run
from peftkit.data.doctor import Case, Change, Finding, Reading, chosen, examine, mend, open_case, write_fixed
from peftkit.data.doctor.finding import FIRST, SEVERITIES
from peftkit.data.doctor.write import check_free
from peftkit.flows.out import check_new, written_to
from peftkit.models.configure import configure, context_limit
from peftkit.models.find import find
from peftkit.models.processor import load_processor

COLOURS = {"error": "bold red", "warning": "yellow", "note": "cyan"}


@dataclass(frozen=True)
class Asked:
    """What the command's own words ask for."""

    fix: Path | None = None
    json: Path | None = None
    only: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()


def check(run: Run, asked: Asked, console: Console | None = None) -> int:
    """Print (and write) the findings, mend if asked; 1 if there is an error among the findings, else 0."""
    checks = chosen(asked.only, asked.skip)
    if asked.fix:
        check_free(asked.fix)
    if asked.json:
        check_new(asked.json, "--json")
    case = open_case(run.data, run.task, reading(run))
    findings = examine(case, checks)
    skipped = [] if case.reading else [one.name for one in checks if one.model]
    lines = report(case, findings, skipped)
    if asked.json:
        with written_to(asked.json, flag="--json"):
            found = json.dumps(plain(case, findings, skipped), indent=1, ensure_ascii=False)
            asked.json.write_text(found + "\n", "utf-8")
    if asked.fix:
        after, changes = mend(case, checks, asked.only)
        with written_to(asked.fix, flag="--fix"):
            written = write_fixed(asked.fix, case, after, changes, run.data.limit)
        lines += [Text(), *(Text(line) for line in fixed(written, case, after, changes))]
    elif any(finding.remedies for finding in findings):
        lines.append(Text("--fix OUT_DIR writes new files with the remedies applied", style="dim"))
    console = console or Console(highlight=False)
    console.print(Text("\n").join(lines), soft_wrap=True)
    return int(any(finding.severity == "error" for finding in findings))


def reading(run: Run) -> Reading | None:
    """How the model that was named reads rows; None if none was named: none is fetched for a check."""
    if run.model.path is None:
        return None
    source = find(run.model, run.data.cache)
    processor = load_processor(run.model, source)
    if hasattr(processor, "truncation_side"):
        processor.truncation_side = run.data.truncate
    context = context_limit(configure(run.model, run.task, source))
    return Reading(processor, min(run.data.max_length, context or run.data.max_length), run.data.stride)


def report(case: Case, findings: Sequence[Finding], skipped: Sequence[str]) -> list[Text]:
    """The rows of each source, each finding, and the count."""
    lines = [
        Text(f"{one.split}: {one.name}, {counted(len(one.raw), 'row')}, --task {one.task.name}") for one in case.sheets
    ]
    for finding in findings:
        lines += [Text(), *described(finding)]
    if skipped:
        lines += [Text(), Text(f"no --model was named, so these were not checked: {', '.join(skipped)}")]
    counts = Counter(finding.severity for finding in findings)
    return [*lines, Text(), Text(", ".join(counted(counts[name], name) for name in SEVERITIES))]


def described(finding: Finding) -> list[Text]:
    """`error  labels  train: reviews.csv, 2 lines: 7, 9`, what it means, what to do."""
    numbers = finding.numbers
    first = ", ".join(map(str, numbers[:FIRST])) + (" ..." if len(numbers) > FIRST else "")
    place = f"{finding.sheet.split}: {finding.sheet.name}, {counted(len(numbers), finding.sheet.unit)}: {first}"
    head = Text(f"{finding.severity:<8}", style=COLOURS[finding.severity]).append(finding.check, style="bold")
    lines = [head.append(f"  {place}", style="not bold default"), Text(f"        {finding.means}")]
    return [*lines, Text(f"        remedy: {finding.says}", style="dim")] if finding.says else lines


def counted(count: int, what: str) -> str:
    """`1 row`, `2 rows`."""
    return f"{count:,} {what}{'s' * (count != 1)}"


def plain(case: Case, findings: Sequence[Finding], skipped: Sequence[str]) -> dict[str, Any]:
    """The findings as JSON; all row numbers."""
    sources = [
        {"split": one.split, "source": one.source, "rows": len(one.raw), "unit": one.unit, "task": one.task.name}
        for one in case.sheets
    ]
    return {"sources": sources, "not_checked": list(skipped), "findings": [one.plain() for one in findings]}


def fixed(written: Sequence[Path], before: Case, after: Case, changes: Sequence[Change]) -> list[str]:
    """What was written, and how many rows each remedy changed."""
    lines = [
        f"{path}: {len(new.raw)} of {len(old.raw)} rows of {old.split}"
        for path, old, new in zip(written, before.sheets, after.sheets, strict=False)
    ]
    counts = Counter((one.remedy, one.check) for one in changes for _ in one.numbers)
    lines += [f"  {remedy} ({check}): {counted(count, 'row')}" for (remedy, check), count in sorted(counts.items())]
    return [*lines, f"{written[-1]} says which rows"]
