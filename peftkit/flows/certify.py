"""An export against the model that was trained: what both are asked, what is allowed, and the certificate that comes of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from peftkit.config.export import Bounds
from peftkit.engine.space import size
from peftkit.errors import ExportError
from peftkit.evaluation import probe
from peftkit.evaluation.certificate import Certificate, Cost, size_of
from peftkit.evaluation.figures import compare, limits, problems, stored_format
from peftkit.evaluation.fresh import Errand, Report, ask_fresh_process
from peftkit.evaluation.held import Held, Records, recorded_in_time, scores, size_in_memory
from peftkit.evaluation.speed import speed
from peftkit.evaluation.verify import Answer, Question, answer, question
from peftkit.exporters import Exporter
from peftkit.exporters.base import Reading
from peftkit.tasks import Task
from peftkit.tasks.base import Batch
from peftkit.tracking.quiet import terminal

NO_BOUNDS = Bounds()
SOME = 4
"""Batches that the untrained model is asked: its share of an export's time stays small."""


@dataclass(frozen=True)
class Checks:
    """How an export is judged."""

    bounds: Bounds = NO_BOUNDS
    force: bool = False
    """Keep one that misses limits, and say so wherever it is spoken of."""
    held: Held | None = None
    """Rows for the task's metrics."""


@dataclass(frozen=True)
class Before:
    """All that the trained model said, while it was there: a merge changes it."""

    task: Task
    asked: Question
    expected: Answer
    untrained: Answer | None
    """Of the model without its adapter."""
    made: dict[str, dict[str, Any]]
    """The probe's recipe."""
    probe: Question
    probed: Answer | None
    """None for a model that takes no inputs of the kind that a probe makes; its certificate has none then."""
    held: Held | None
    records: Records
    cost: Cost
    device: str


def interview(model: nn.Module, task: Task, batches: Sequence[Batch], held: Held | None) -> Before:
    """Ask the trained model everything that its export will be asked."""
    asked = question(model, task, batches)
    expected = answer(model, asked)
    made, probing = probe.probing(model, asked.inputs[0], asked.each)
    probed = answered(model, probing)
    records: Records = []
    if held:
        held, records = recorded_in_time(model, held, task)
    took = speed(model, asked.inputs[0], next(iter(asked.prompts), None))
    return Before(
        task=task,
        asked=asked,
        expected=expected,
        untrained=untrained(model, asked),
        made=made,
        probe=probing,
        probed=probed,
        held=held,
        records=records,
        cost=Cost(bytes=size_in_memory(model), tokens_per_second=took.tokens, rows_per_second=took.rows),
        device=next(model.parameters()).device.type,
    )


def answered(model: nn.Module, probing: Question) -> Answer | None:
    try:
        return answer(model, probing)
    except (ValueError, RuntimeError, IndexError, KeyError, TypeError):
        return None


def untrained(model: Any, asked: Question) -> Answer | None:
    """The logits of the first batches by the model as if it had not been trained, where that can be had of it."""
    if not hasattr(model, "disable_adapter"):
        return None
    with model.disable_adapter():
        return answer(model, Question(asked.inputs[:SOME], asked.positions[:SOME], each=asked.each))


def certify(
    exporter: Exporter, folder: Path, reading: Reading, before: Before, checks: Checks, known: Mapping[str, Any]
) -> Certificate:
    """Open the export in a fresh process and compare. Raises ExportError with the figures if it misses a limit, unless forced.

    The certificate is not complete: the files are hashed when all of them are there.
    """
    held = before.held
    errand = Errand(
        before.asked,
        before.probe if before.probed else None,
        batches=held.batches if held else (),
        task=before.task if held else None,
        generate=held.generate if held else None,
        times=True,
    )
    own = replace(reading, trust_remote_code=reading.trust_remote_code or exporter.runs_code)  # it was written just now
    report = ask_fresh_process(exporter, folder, own, errand, before.device)
    stored = stored_format(folder)
    allowed = limits(stored, bool(before.asked.prompts), exporter.tolerance, checks.bounds)
    figures = compare(before.expected, report.answer, allowed, before.untrained)
    missed = problems(figures, allowed)
    if missed and not checks.force:
        raise ExportError(
            f"the {exporter.name} export is not what was trained, and was removed: {'; '.join(missed)}"
            " (--force keeps one that misses its limits, marked as such)"
        )
    scored, metrics = (0, {}) if held is None else scores(held, before.task, before.records, report.records)
    return Certificate(
        exporter=exporter.name,
        settings=exporter.model_dump(mode="json", exclude={"name"}),
        made=datetime.now(UTC).isoformat(timespec="seconds"),
        rows=sum(rows_in(inputs) for inputs in before.asked.inputs),
        positions=len(before.expected.logits),
        prompts=len(before.asked.prompts),
        stored=exporter.stored(reading) or str(stored).removeprefix("torch."),
        figures=figures,
        limits=allowed,
        asked_limits={name: value for name, value in checks.bounds.model_dump().items() if value is not None},
        forced=bool(missed),
        missed=tuple(missed),
        scored=scored,
        metrics=metrics,
        costs={"export": cost_of(report, folder), "trained": before.cost},
        probe=probe.certified(before.made, before.probe, before.probed, report.probe)
        if before.probed and report.probe
        else None,
        files={},
        versions=report.versions,
        **known,
    )


def rows_in(inputs: Mapping[str, Any]) -> int:
    return len(next(value for value in inputs.values() if isinstance(value, Tensor)))


def cost_of(report: Report, folder: Path) -> Cost:
    return Cost(
        bytes=size_of(folder),
        load_seconds=report.load_seconds,
        tokens_per_second=report.speed.tokens,
        rows_per_second=report.speed.rows,
    )


def show(certificate: Certificate, folder: Path) -> None:
    """A short table on the terminal, and in red what was forced."""
    console = Console(file=terminal(), highlight=False)
    console.print(summary(certificate, folder))
    if certificate.forced:
        console.print(
            f"KEPT BY --force: this is not the model that was trained. {'; '.join(certificate.missed)}",
            style="bold red",
            soft_wrap=True,
        )


def summary(certificate: Certificate, folder: Path) -> Table:
    table = Table("compared with the trained model", "found", "allowed", title=str(folder), title_justify="left")
    for row in compared(certificate):
        table.add_row(*row)
    table.add_section()
    for name, score in certificate.metrics.items():
        if "/" not in name:
            values = [f"{value:.4g}" if value is not None else "no number" for value in (score.export, score.trained)]
            table.add_row(name, values[0], f"trained: {values[1]}")
    for row in costs(certificate):
        table.add_row(*row)
    counts = {"position": certificate.positions, "held-out row": certificate.rows, "file": len(certificate.files)}
    positions, rows, files = (f"{count:,} {what}{'s' * (count != 1)}" for what, count in counts.items())
    scored = f"; metrics of {certificate.scored:,} rows" if certificate.metrics else ""
    table.caption = f"{positions} of {rows}{scored}; {files}, weights in {certificate.stored}"
    return table


def compared(certificate: Certificate) -> list[tuple[str, str, str]]:
    """Each figure, and its limit."""
    figures, allowed = certificate.figures, certificate.limits
    largest = f"{allowed.max_difference * figures.scale:.2g}"
    rows = [
        ("logits: mean error / their size", f"{figures.relative_error:.2g}", f"{allowed.relative_error:.2g}"),
        ("logits: KL divergence, nats", f"{figures.kl:.2g}", f"{allowed.kl:.2g}"),
        ("logits: largest difference", f"{figures.max_difference:.2g}", largest),
        ("same likeliest class", f"{figures.top1:.1%}", "where it is clear: all"),
    ]
    if figures.learnt is not None:
        off = "any" if allowed.learnt is None else f"{1 - allowed.learnt:.0%} to {1 + allowed.learnt:.0%}"
        rows.append(("what training changed", f"{figures.learnt:.1%} ± {figures.learnt_error:.1%}", off))
    if figures.same_text is not None:
        least = f"at least {allowed.same_text:.0%}" if allowed.same_text is not None else "any"
        rows.append(("same greedy text", f"{figures.same_text:.0%} of {certificate.prompts}", least))
    return rows


def costs(certificate: Certificate) -> list[tuple[str, str, str]]:
    """What the export takes, beside the trained model."""
    if not certificate.costs:
        return []
    export, trained = certificate.costs["export"], certificate.costs["trained"]
    rows = [("size", size(export.bytes), f"trained, in memory: {size(trained.bytes)}")]
    for name, one, other in (
        ("rows read / s", export.rows_per_second, trained.rows_per_second),
        ("tokens written / s", export.tokens_per_second, trained.tokens_per_second),
    ):
        if one is not None and other is not None:
            rows.append((name, f"{one:,.3g}", f"trained: {other:,.3g}"))
    if export.load_seconds is not None:
        rows.append(("seconds to load", f"{export.load_seconds:.2g}", ""))
    return rows
