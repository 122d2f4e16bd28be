"""The certificate beside an export's weights: how far it is from the model that was trained, and which files it speaks of."""

from __future__ import annotations

import hashlib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from peftkit.errors import ExportError
from peftkit.redact import redact

PACKAGES = ("peftkit", "torch", "transformers", "peft", "deepspeed", "bitsandbytes", "safetensors")
WEIGHTS = (".safetensors", ".bin", ".gguf")
CERTIFICATE = "certificate.json"


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


class Limits(Frozen):
    """What an export may differ by."""

    kl: float
    top1_decided: float
    relative_error: float
    max_difference: float
    """In parts of `Figures.scale`."""
    same_text: float | None = None


class Certificate(Frozen):
    """`certificate.json`."""

    exporter: str
    base: str
    revision: str | None = None
    fingerprint: str | None = None
    """Hash of the base model that it was trained on."""
    step: int | None = None
    rows: int
    positions: int
    prompts: int
    stored: str
    """The coarsest format among the weights; the limits follow from it."""
    figures: Figures
    limits: Limits
    files: dict[str, str]
    """sha256 of every file of weights."""
    versions: dict[str, str]

    def write(self, folder: Path) -> None:
        (folder / CERTIFICATE).write_text(redact(self.model_dump_json(indent=2)) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Certificate:
        """The certificate of an export whose weights are still those that it speaks of; else ExportError."""
        try:
            certificate = cls.model_validate_json((folder / CERTIFICATE).read_text(encoding="utf-8"))
        except (OSError, ValueError) as problem:
            raise ExportError(f"{folder} has no readable certificate: {problem}") from None
        now = weight_files(folder)
        changed = sorted(
            name for name in now.keys() | certificate.files.keys() if now.get(name) != certificate.files.get(name)
        )
        if changed:
            raise ExportError(f"{folder}: {', '.join(changed)} changed since the export was verified")
        return certificate


def weight_files(folder: Path) -> dict[str, str]:
    """sha256 of every file of weights in the folder."""
    paths = sorted(path for path in folder.iterdir() if path.suffix in WEIGHTS)
    return {path.name: sha256(path) for path in paths}


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def versions() -> dict[str, str]:
    """The installed packages that an export depends on."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
