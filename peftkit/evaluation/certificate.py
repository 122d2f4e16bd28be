"""The certificate beside an export's weights: how far it is from the model that was trained, and which files it speaks of.

Format 1 has no `format`, hashes weights alone and ends at `versions`. Format 2 hashes every file, names the base by its files, and
says what the export costs, what it scores and what it answers to a probe that holds no row. Either is read.
"""

from __future__ import annotations

import hashlib
import json
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from peftkit.errors import ExportError
from peftkit.redact import redact

FORMAT = 2
PACKAGES = (
    *("peftkit", "torch", "transformers", "peft", "deepspeed", "bitsandbytes", "safetensors"),
    *("torchao", "onnxruntime", "openvino", "llama-cpp-python", "gguf"),
)
WEIGHTS = (".safetensors", ".bin", ".gguf")
CERTIFICATE = "certificate.json"
CARD = "README.md"
"""It is hashed as all files are, but people may write into it."""


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Figures(Frozen):
    """How two models differ on the same rows."""

    kl: float
    """Mean Kullback-Leibler divergence, trained || export, in nats."""
    top1: float
    """Share of positions with the same likeliest class."""
    top1_decided: float
    """The same, among positions where the trained model prefers its first choice by more than the tolerated error."""
    relative_error: float
    """Root mean square of the logits' differences, in parts of that of the trained model's logits (both centred)."""
    max_difference: float
    """Largest difference of any logit."""
    scale: float
    """Root mean square of the trained model's centred logits."""
    same_text: float | None = None
    """Share of prompts that both continue with the same tokens, taking the likeliest each time."""
    learnt: float | None = None
    """How much the export has of what training changed: the part of (export - base) along (trained - base), over all logits; 1
    is all of it, 0 the base. None where the model cannot be asked without its training."""
    learnt_error: float | None = None
    """Standard error of `learnt`, from its spread over the positions."""


class Limits(Frozen):
    """What an export may differ by."""

    kl: float
    top1_decided: float
    relative_error: float
    max_difference: float
    """In parts of `Figures.scale`."""
    same_text: float | None = None
    learnt: float | None = None
    """By how much `Figures.learnt` may be off 1, besides four of its standard errors."""


class Score(Frozen):
    """A metric of the task on held-out rows, before and after."""

    trained: float | None
    """None where it is no number (there was nothing to count)."""
    export: float | None
    difference: float | None


class Cost(Frozen):
    """What a model takes, measured once on the machine that exported it."""

    bytes: int
    """On the disk; of the trained model, in memory."""
    load_seconds: float | None = None
    tokens_per_second: float | None = None
    """Written after a prompt, the likeliest each time; None for models that write no text."""
    rows_per_second: float | None = None
    """Held-out rows read, a batch at a time."""


class Probe(Frozen):
    """Made-up inputs, and what the trained model says to them: anybody can ask again, without a row of anybody's data."""

    seed: int
    inputs: dict[str, dict[str, Any]]
    """How each input is made: its `shape`, what is drawn (ids, normal, ones, zeros); of ids the range, those left out, the last."""
    positions: int
    width: int
    """Classes at each position."""
    sketch: list[list[float]]
    """Each position's centred logits; if there are many, their products with vectors of random signs."""
    top: list[list[int]]
    """Each position's likeliest classes, the first first."""
    leads: list[float]
    """By how much the first leads the second."""
    text: list[int] = []
    """What it writes after the first row."""
    error: float
    """How far the export was from it when it was certified, as `Figures.relative_error`."""
    same_text: bool | None = None
    """Whether the export wrote the same then."""
    each: bool = False
    """Whether each output is a number or a decision of its own."""


class Certificate(Frozen):
    """`certificate.json`."""

    format: int = 1
    made: str | None = None
    """Day and time, UTC."""
    exporter: str
    settings: dict[str, Any] = {}
    """The exporter's."""
    run: str | None = None
    """sha256 of the run's settings that decide what is learnt."""
    base: str
    revision: str | None = None
    fingerprint: str | None = None
    """sha256 over the names and hashes of the base's files of weights: the checkpoints name it, too."""
    base_files: dict[str, str] = {}
    """sha256 of the base's files of weights, and of its configuration."""
    step: int | None = None
    rows: int
    positions: int
    prompts: int
    stored: str
    """The coarsest format among the weights; the limits follow from it, unless the exporter has a tolerance."""
    figures: Figures
    limits: Limits
    asked_limits: dict[str, float] = {}
    """Limits that its maker chose."""
    forced: bool = False
    """Whether it was kept though it misses limits."""
    missed: tuple[str, ...] = ()
    """Every limit that it misses, in a sentence each."""
    scored: int = 0
    """Held-out rows that the metrics are of."""
    metrics: dict[str, Score] = {}
    costs: dict[str, Cost] = {}
    """`export`, as it is served, and `trained`."""
    probe: Probe | None = None
    files: dict[str, str]
    """sha256 of every file beside it; in format 1, of the weights."""
    versions: dict[str, str]
    """Packages that opened it, and Python's."""
    digest: str | None = None
    """sha256 over all of the above."""

    def write(self, folder: Path) -> Certificate:
        """Into the folder, without secrets; what was written, with its digest."""
        plain = Certificate.model_validate_json(redact(self.model_dump_json()))
        sealed = plain.model_copy(update={"format": FORMAT}).sealed()
        (folder / CERTIFICATE).write_text(sealed.model_dump_json(indent=2) + "\n", encoding="utf-8")
        return sealed

    def sealed(self) -> Certificate:
        """With the digest of what it says."""
        said = self.model_dump(mode="json", exclude={"digest"})
        text = json.dumps(said, sort_keys=True, separators=(",", ":"))
        return self.model_copy(update={"digest": hashlib.sha256(text.encode()).hexdigest()})

    @classmethod
    def load(cls, folder: Path) -> Certificate:
        """What lies in the folder, unchanged since it was written; else ExportError."""
        file = folder / CERTIFICATE
        try:
            held = json.loads(file.read_text(encoding="utf-8"))
            newer = isinstance(held, dict) and held.get("format", 1) > FORMAT
        except (OSError, ValueError, TypeError) as problem:
            raise ExportError(f"{folder} has no readable certificate: {problem}") from None
        if newer:
            raise ExportError(f"{file} is of format {held['format']}; this peftkit reads up to {FORMAT}: update it")
        try:
            certificate = cls.model_validate(held)
        except ValidationError as problem:
            where = ".".join(map(str, problem.errors()[0]["loc"]))
            raise ExportError(f"{folder} has no readable certificate: {where}: {problem.errors()[0]['msg']}") from None
        if certificate.format > 1 and certificate.sealed().digest != certificate.digest:
            raise ExportError(f"{file} was edited: what it says no longer has its digest")
        return certificate

    @classmethod
    def read(cls, folder: Path) -> Certificate:
        """The certificate of an export whose files are still those that it speaks of; else ExportError."""
        certificate = cls.load(folder)
        if changed := certificate.changed(folder):
            raise ExportError("; ".join(changed))
        return certificate

    def changed(self, folder: Path) -> list[str]:
        """What is not as it was certified, a sentence for each file."""
        now = files_of(folder) if self.format > 1 else weight_files(folder)
        said = {
            name: "is missing"
            if name not in now
            else "was not there when"
            if name not in self.files
            else "changed since"
            for name in sorted(now.keys() | self.files.keys())
            if now.get(name) != self.files.get(name) and name != CARD
        }
        return [
            f"{folder / name} {what}" + ("" if what == "is missing" else " the export was verified")
            for name, what in said.items()
        ]


def files_of(folder: Path) -> dict[str, str]:
    """sha256 of every file below the folder, by its path there; but not of the certificate, nor of what begins with a dot."""
    paths = {path.relative_to(folder): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {
        name.as_posix(): sha256(path)
        for name, path in paths.items()
        if name.as_posix() != CERTIFICATE and not any(part.startswith(".") for part in name.parts)
    }


def weight_files(folder: Path) -> dict[str, str]:
    """sha256 of every file of weights in the folder."""
    paths = sorted(path for path in folder.iterdir() if path.suffix in WEIGHTS)
    return {path.name: sha256(path) for path in paths}


def size_of(folder: Path) -> int:
    """Bytes of all its files."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def versions(packages: tuple[str, ...] = PACKAGES) -> dict[str, str]:
    """The installed packages that an export depends on."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
