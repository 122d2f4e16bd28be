"""The model card: what the model is, what it was made of, and how to open it, as Markdown with a YAML head."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml


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
    versions: Mapping[str, str] = field(default_factory=dict)
    revision: str | None = None
    licence: str | None = None
    """Only what is known; left out otherwise."""
    missed: Sequence[str] = ()
    """What it differs by from the trained model, more than is allowed, if it was kept all the same."""


def model_card(card: Card) -> str:
    """The text of README.md."""
    task, strategy = card.task["name"], card.strategy["name"]
    parts = [
        "---\n" + yaml.safe_dump(_head(card), sort_keys=False) + "---",
        f"# {_cell(card.name)}",
        f"{_code(card.base)}, fine-tuned for `{task}` with `{strategy}`.",
        *([WARNING + "".join(f"\n> - {_cell(one)}" for one in card.missed)] if card.missed else []),
        "## Use\n\n```python\n" + card.example + "\n```",
        "## Training\n\n" + _table("Setting", "Value", _settings(card)),
        "## Data\n\n" + _table("Setting", "Value", _flat("data", card.data)),
    ]
    if card.metrics:
        shown = {name: f"{value:.6g}" for name, value in card.metrics.items()}
        parts.append("## Evaluation\n\n" + _table("Metric", "Value", shown))
    parts.append("## Check\n\n" + CHECK)
    parts.append("## Versions\n\n" + _table("Package", "Version", dict(card.versions)))
    return "\n\n".join(parts) + "\n"


def licence_of(base: Path) -> str | None:
    """The licence that the base's own card names, if the base is a folder with a card."""
    try:
        head = yaml.safe_load((base / "README.md").read_text(encoding="utf-8").split("---\n")[1])
    except (OSError, ValueError, IndexError, RecursionError, yaml.YAMLError):
        return None
    licence = head.get("license") if isinstance(head, dict) else None
    return licence if isinstance(licence, str) else None


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


def _head(card: Card) -> dict[str, Any]:
    head: dict[str, Any] = {"base_model": card.base}
    if card.kind == "merged":
        head["base_model_relation"] = "finetune"
    head["library_name"] = "peft" if card.kind == "adapter" else "transformers"
    head["tags"] = ["peftkit", card.strategy["name"], card.task["name"]]
    if card.licence:
        head["license"] = card.licence
    return head


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
