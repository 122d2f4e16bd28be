"""Everything that the model card tells of an export: from the run's settings, its folder, and what was found of the export."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from huggingface_hub import try_to_load_from_cache

from peftkit.config.run import Run
from peftkit.data.sources.files import looks_like_data
from peftkit.data.sources.hub import HUB
from peftkit.evaluation.certificate import Certificate, versions
from peftkit.exporters import Exporter
from peftkit.exporters.base import Reading
from peftkit.exporters.card import Card, licence_of, model_card
from peftkit.exporters.curves import CURVES, curves_svg
from peftkit.exporters.history import History
from peftkit.exporters.servers import serving_notes
from peftkit.flows.certify import compared
from peftkit.redact import redact

UNTOLD = {"model", "task", "strategy", "data", "out", "resume", "verbose", "slurm", "guard"}
"""Sections that have a place of their own in the card, or say nothing of the model."""


def write_card(
    partial: Path,
    exporter: Exporter,
    run: Run,
    folder: Path,
    reading: Reading,
    metrics: Mapping[str, float],
    history: History,
    certificate: Certificate,
) -> None:
    """Write README.md, and the picture of the losses, into `partial`, which will be `folder`."""
    picture = curves_svg(
        {"training": history.curve(), **{split: history.curve(split) for split in ("validation", "anchor")}}
    )
    if picture:
        (partial / CURVES).write_text(picture, encoding="utf-8")
    card = Card(
        name=f"{Path(reading.base).name}-{run.task.name}-{run.strategy.name}",
        base=reading.base,
        revision=reading.revision,
        kind=exporter.name,
        task=run.task.model_dump(mode="json"),
        strategy=run.strategy.model_dump(mode="json"),
        settings=run.model_dump(mode="json", exclude=UNTOLD),
        data=run.data.model_dump(mode="json", exclude={"cache"}),
        metrics=metrics,
        versions=versions(),
        licence=licence_of(base_folder(reading)),
        example=exporter.example(folder.name, reading),
        history=history,
        datasets=list(dict.fromkeys(hub_datasets(run))),
        curves=picture is not None,
        figures={name: found for name, found, _ in compared(certificate)},
        missed=certificate.missed,
        serving=serving_notes(partial, exporter.name, reading.auto_class),
    )
    (partial / "README.md").write_text(redact(model_card(card)), encoding="utf-8")


def base_folder(reading: Reading) -> Path:
    """Where the base's own card may lie: its folder, or the hub's cache."""
    if Path(reading.base).is_dir():
        return Path(reading.base)
    cached = try_to_load_from_cache(reading.base, "README.md", revision=reading.revision)
    return Path(cached).parent if isinstance(cached, str) else Path(reading.base)


def hub_datasets(run: Run) -> Iterator[str]:
    """The data sets of the hub that the run read, without their configurations and splits."""
    data = run.data
    for source in (*(part.path for part in data.mixture), data.train, data.validation, data.test):
        named = HUB.fullmatch(source) if source else None
        if (
            named
            and source
            and "/" in named["name"]
            and not Path(source).exists()
            and not looks_like_data(Path(source))
        ):
            yield named["name"]
