"""The model card: what the model is, what it was made of, and how to open it, as Markdown with a YAML head."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from peftkit.exporters.curves import CURVES
from peftkit.exporters.history import History
from peftkit.exporters.metadata import head, interval, languages, numbers


@dataclass(frozen=True)
class Card:
    """Everything that a card tells."""

    name: str
    base: str
    kind: str
    """The exporter's name: adapter, merged, ..."""
    task: dict[str, Any]
    strategy: dict[str, Any]
    settings: dict[str, Any]
    """Batch, optimizer, schedule, ...: section -> its settings."""
    data: dict[str, Any]
    example: str
    """Python lines that open it."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """`validation loss` -> its value; the ends of its interval as `validation loss/low` and `validation loss/high`."""
    versions: Mapping[str, str] = field(default_factory=dict)
    revision: str | None = None
    licence: str | None = None
    """Only what is known; left out otherwise."""
    missed: Sequence[str] = ()
    """What it differs by from the trained model, more than is allowed, if it was kept all the same."""
    history: History = field(default_factory=History)
    datasets: Sequence[str] = ()
    """Data sets of the hub among the rows."""
    curves: bool = False
    """Whether the picture of its losses lies beside it."""
    figures: Mapping[str, str] = field(default_factory=dict)
    """How far the export is from the model that was trained, in words."""
    serving: Sequence[str] = ()
    """Lines on how it is served, in Markdown."""


def model_card(card: Card) -> str:
    """The text of README.md."""
    task, strategy = card.task["name"], card.strategy["name"]
    tags = ("peftkit", strategy, task)
    known = head(card.name, card.kind, card.base, card.task, tags, card.licence, card.datasets, card.metrics)
    training = {**card.history.hardware(), **_settings(card)}
    parts = [
        "---\n" + yaml.safe_dump(known, sort_keys=False, allow_unicode=True) + "---",
        f"# {_cell(card.name)}",
        f"{_code(card.base)}, fine-tuned for `{task}` with `{strategy}`.",
        *([WARNING + "".join(f"\n> - {_cell(one)}" for one in card.missed)] if card.missed else []),
        "## Use\n\n```python\n" + card.example + "\n```",
        *(["## Serve\n\n" + "\n".join(f"- {line}" for line in card.serving)] if card.serving else []),
        "## Training\n\n"
        + (f"![losses over steps]({CURVES})\n\n" if card.curves else "")
        + _table("Setting", "Value", training),
        "## Data\n\n" + _table("Setting", "Value", {**card.history.data(), **_flat("data", card.data)}),
    ]
    if card.metrics:
        shown = {name: f"{value:.6g}{interval(card.metrics, name)}" for name, value in numbers(card.metrics).items()}
        parts.append("## Evaluation\n\n" + _table("Metric", "Value", shown))
    parts.append("## Limits\n\n" + "\n".join(f"- {line}" for line in limits(card)))
    check = "\n\n" + _table("Compared with the trained model", "Found", card.figures) if card.figures else ""
    parts.append("## Check\n\n" + CHECK + check)
    parts.append("## Versions\n\n" + _table("Package", "Version", dict(card.versions)))
    return "\n\n".join(parts) + "\n"


def limits(card: Card) -> list[str]:
    """What the numbers above do not say, in sentences: only what follows from what was and was not done."""
    scored = sorted({name.partition(" ")[0] for name in numbers(card.metrics)})
    lines = []
    if not scored:
        lines.append("Nothing of it was scored on rows that it did not learn.")
    for split in scored:
        rows = card.history.rows_of(split)
        count = f"{rows:,} row{'s' * (rows != 1)}" if rows else "rows"
        lines.append(f"The {split} numbers are of {count} like those that it learnt.")
    if scored and "test" not in scored:
        lines.append(
            "No rows were kept for a test at the end: those of the validation may have chosen settings and checkpoints, too."
        )
    if scored and not any("/low" in name for name in card.metrics):
        lines.append("How sure the numbers are was not computed (`--eval.bootstrap`).")
    if "anchor" not in scored:
        lines.append("What the base could do before and this model no longer can was not measured (`--eval.anchor`).")
    if not languages(card.task):
        lines.append("The languages of the rows were not looked into.")
    lines.append("Bias, toxicity, memorised rows and safety were not measured.")
    if card.licence is None:
        lines.append("The licence of the base is not known here; it holds for this model, too.")
    return lines


def licence_of(base: Path) -> str | None:
    """The licence that the base's own card names, if the base is a folder with a card."""
    try:
        held = yaml.safe_load((base / "README.md").read_text(encoding="utf-8").split("---\n")[1])
    except (OSError, ValueError, IndexError, RecursionError, yaml.YAMLError):
        held = None
    licence = held.get("license") if isinstance(held, dict) else None
    return licence if isinstance(licence, str) and LICENCE.fullmatch(licence) else None


LICENCE = re.compile(r"[a-zA-Z0-9][\w.+-]{0,60}")
SPECIAL = re.compile(r"[\\`|]")
"""What Markdown would read otherwise."""
WARNING = (
    "> [!WARNING]\n> **This export is not the model that was trained.** It was kept with `--force` although it misses the limits"
    " of its check:\n>"
)
CHECK = (
    "`certificate.json` says how far this export differs from the model that was trained: it was loaded in a fresh process"
    " and compared on held-out rows. It also holds the sha256 of every file: `peftkit verify FOLDER` checks both anywhere."
)


def _settings(card: Card) -> dict[str, Any]:
    rows: dict[str, Any] = {"base": card.base}
    if card.revision:
        rows["revision"] = card.revision
    rows |= _flat("task", card.task) | _flat("strategy", card.strategy)
    for section, values in card.settings.items():
        rows |= _flat(section, values)
    return rows


def _flat(prefix: str, value: Any) -> dict[str, Any]:
    """`{"optim": {"lr": 1e-4}}` -> `{"optim.lr": 1e-4}`; what is left at nothing is left out."""
    if isinstance(value, dict) and value:
        rows: dict[str, Any] = {}
        for name, inner in value.items():
            rows |= _flat(prefix if name == "name" else f"{prefix}.{name}", inner)
        return rows
    return {} if value in (None, {}, []) else {prefix: value}


def _table(first: str, second: str, rows: Mapping[str, Any]) -> str:
    lines = [f"| {first} | {second} |", "| --- | --- |"]
    lines += [f"| {_cell(name)} | {_cell(value)} |" for name, value in rows.items()]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    """On one line and as it is: labels, columns and paths come from data, and are no Markdown or HTML."""
    text = SPECIAL.sub(r"\\\g<0>", " ".join(str(value).split()))
    return text.replace("](", "]\\(").replace("<", "&lt;")


def _code(text: str) -> str:
    return "`" + " ".join(text.split()).replace("`", "'") + "`"
