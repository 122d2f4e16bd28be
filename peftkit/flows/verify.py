"""`peftkit verify FOLDER`: whether an export is still what was certified, on any machine and without the run.

Its files are hashed, its base is, and it is opened in a fresh process by what serves it and asked the certificate's probe again.
What `peftkit merge` wrote has no certificate: it is merged again (`flows.remerge`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from rich.table import Table
from rich.text import Text

from peftkit.config.sections import Model
from peftkit.engine.world import joined
from peftkit.errors import ConfigError, ExportError, ModelError
from peftkit.evaluation import probe
from peftkit.evaluation.certificate import CERTIFICATE, Certificate, size_of
from peftkit.evaluation.fresh import Errand, ask_fresh_process
from peftkit.exporters.manual import MANUAL, Manual
from peftkit.flows.certify import compared, costs
from peftkit.flows.evaluate import Asked as Scored
from peftkit.flows.evaluate import metrics_of, prepare_rows, scores
from peftkit.flows.trained import from_export, manual_of
from peftkit.merging.beside import PROVENANCE
from peftkit.models.find import find
from peftkit.models.load import base_files, fingerprint
from peftkit.tracking.quiet import chatter_to

SOME = 64
"""Rows that are scored unless all are asked for."""


@dataclass(frozen=True)
class Asked:
    """How closely an export is looked at."""

    base: str | None = None
    """The base of an adapter, where it does not lie where it lay when the export was made."""
    rows: str | None = None
    """Rows to score it on."""
    full: bool = False
    """Hash a base anew whose hash is known, and score all of the rows."""
    accept_forced: bool = False
    trust: bool = False
    """Allow Python code that comes with the model."""


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    name: str
    found: str
    expected: str = ""
    problems: tuple[str, ...] = ()
    """What is wrong, a sentence each."""


@dataclass
class Verdict:
    """What came of it."""

    folder: Path
    certificate: Certificate | None = None
    checks: list[Check] = field(default_factory=list)

    @property
    def problems(self) -> list[str]:
        return [problem for check in self.checks for problem in check.problems]

    @property
    def ok(self) -> bool:
        return not self.problems

    def to_json(self) -> dict[str, Any]:
        held = self.certificate
        return {
            "folder": str(self.folder),
            "ok": self.ok,
            "problems": self.problems,
            "checks": [{**asdict(check), "ok": not check.problems} for check in self.checks],
            "certificate": None if held is None else held.model_dump(mode="json", exclude={"probe", "files"}),
        }


def verify(folder: Path, asked: Asked, verbose: bool = False) -> Verdict:
    """Check the export in `folder`. ConfigError if there is none; whatever else is wrong stands in the verdict."""
    folder = folder.expanduser()
    if (folder / PROVENANCE).is_file() and not (folder / CERTIFICATE).is_file():
        from peftkit.flows import remerge

        with chatter_to(None, verbose):
            return Verdict(folder, None, list(remerge.checks(folder, asked.base, asked.trust)))
    if not (folder / CERTIFICATE).is_file() and not (folder / MANUAL).is_file():
        what = "that is no export" if folder.is_dir() else "there is no such folder"
        raise ConfigError(f"{folder}: {what}; name RUN/export/NAME or a copy of one, or what peftkit merge wrote")
    verdict = Verdict(folder)
    try:
        verdict.certificate = certificate = Certificate.load(folder)
    except ExportError as problem:
        verdict.checks.append(Check("certificate", "unreadable", "", (str(problem),)))
        return verdict
    with chatter_to(None, verbose):
        for check in checks(folder, certificate, asked):
            verdict.checks.append(check)
    return verdict


def checks(folder: Path, certificate: Certificate, asked: Asked) -> Iterator[Check]:
    """Each check in turn; a model whose files or whose base are others is not opened."""
    yield certified(certificate, asked)
    files = intact(folder, certificate)
    yield files
    if files.problems:
        return
    try:
        manual = manual_of(folder, asked.trust)
    except ModelError as problem:
        yield Check("peftkit.json", "unreadable", "", (str(problem),))
        return
    if asked.base:
        manual = replace(manual, reading=replace(manual.reading, base=asked.base, revision=None))
    if manual.exporter.needs_adapter or asked.base:
        base, manual = based(manual, certificate, asked)
        yield base
        if base.problems:
            return
    answered = asks(folder, manual, certificate)
    yield from answered
    if asked.rows and not any(check.problems for check in answered):
        yield from scored(folder, manual, certificate, asked)


def certified(certificate: Certificate, asked: Asked) -> Check:
    """Whether it was what had been trained when it was made."""
    said = f"format {certificate.format}, of {certificate.made or 'an unknown day'}"
    if not certificate.forced:
        return Check("certificate", said, (certificate.digest or "")[:16])
    problem = f"it was kept by --force although {'; '.join(certificate.missed)}"
    accepted = asked.accept_forced
    return Check(
        "certificate",
        f"{said}; FORCED: {problem}",
        "",
        () if accepted else (f"{problem} (--accept_forced lets it pass)",),
    )


def intact(folder: Path, certificate: Certificate) -> Check:
    """Whether the files are those of the certificate, all of them and no others."""
    changed = certificate.changed(folder)
    count = len(certificate.files)
    what = "files" if certificate.format > 1 else "files of weights"
    return Check(
        "files", f"{count - len(changed) if changed else count} as certified", f"{count} {what}", tuple(changed)
    )


def based(manual: Manual, certificate: Certificate, asked: Asked) -> tuple[Check, Manual]:
    """Whether the base is the one that the adapter was trained on; and how the export is opened with it where it lies."""
    reading = manual.reading
    settings = Model(path=reading.base, revision=reading.revision, trust_remote_code=asked.trust)
    try:
        with TemporaryDirectory() as afresh:
            root = Path(afresh) if asked.full else None
            source = find(settings, None)
            now = base_files(settings, source, root)
            one = fingerprint(settings, source, root)
    except (OSError, ModelError, ConfigError) as problem:
        told = f"the base {reading.base} is not to be had here ({problem}); name it with --base"
        return Check("base", "not there", "", (told,)), manual
    known = certificate.base_files
    wrong = [
        f"the base {source} is not the one that it was trained on: {name} {'differs' if name in now else 'is missing'}"
        for name in known
        if now.get(name) != known[name]
    ]
    if not known and certificate.fingerprint not in (None, one):
        wrong = [f"the base {source} is not the one that it was trained on: its weights differ"]
    manual = replace(manual, reading=replace(reading, base=source))
    return Check("base", source, f"{len(known)} files" if known else "", tuple(wrong)), manual


def asks(folder: Path, manual: Manual, certificate: Certificate) -> list[Check]:
    """What it answers now, in a fresh process."""
    held = certificate.probe
    if held is None:
        return [Check("answers", "not asked: its certificate has no probe", "")]
    asked = probe.asked(held)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        report = ask_fresh_process(manual.exporter, folder, manual.reading, Errand(asked), device)
    except ExportError as problem:
        return [Check("opens", "no", "", (str(problem),))]
    error, allowed, wrong = probe.remeasured(held, report.answer, certificate.limits)
    found = f"{error:.2g} of their size (certified with {held.error:.2g})"
    checks = [
        Check("seconds to load", f"{report.load_seconds:.2g}", _certified_load(certificate)),
        Check("answers differ by", found, f"{allowed:.2g}", tuple(wrong)),
    ]
    if report.answer.texts:
        same = report.answer.texts[0].tolist() == held.text
        checks.append(
            Check("writes the same words", "yes" if same else "no", "" if held.same_text else "nor when certified")
        )
    return checks


def _certified_load(certificate: Certificate) -> str:
    before = certificate.costs.get("export")
    return f"certified with {before.load_seconds:.2g}" if before and before.load_seconds is not None else ""


def scored(folder: Path, manual: Manual, certificate: Certificate, asked: Asked) -> Iterator[Check]:
    """The task's metrics on rows of one's own, beside those that were certified on held-out ones."""
    words = Scored(rows=str(asked.rows), limit=None if asked.full else SOME)
    with joined() as world:
        trained = from_export(folder, asked.trust, manual.reading.base)
        metrics = metrics_of(trained, ())
        prepared = prepare_rows(trained, words)
        numbers = scores(trained, prepared, metrics, words, world).numbers
    for name, value in numbers.items():
        known = certificate.metrics.get(name)
        if "/" not in name:
            before = "" if known is None or known.export is None else f"{known.export:.4g} on the certified rows"
            yield Check(name, f"{value:.4g} on {asked.rows}", before)


def table(verdict: Verdict) -> Table:
    """What the certificate says, and what was found now."""
    shown = Table("", "found", "certified or allowed", title=Text(str(verdict.folder)), title_justify="left")
    for check in verdict.checks:
        # As text: a path or a message may hold what rich would read as markup.
        shown.add_row(check.name, Text(check.found, style="red" if check.problems else ""), Text(check.expected))
    if verdict.certificate:
        shown.add_section()
        for name, found, allowed in [*compared(verdict.certificate), *costs(verdict.certificate)]:
            shown.add_row(name, f"certified: {found}", allowed)
    shown.caption = f"{size_of(verdict.folder):,} bytes"
    return shown
