"""The model card tells what is known, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from peftkit.exporters.card import Card, licence_of, model_card


def card(**changes: Any) -> Card:
    values: dict[str, Any] = {
        "name": "tiny-chat-lora",
        "base": "org/base",
        "kind": "merged",
        "task": {"name": "chat"},
        "strategy": {"name": "lora", "rank": 8, "layers": None},
        "settings": {"optim": {"name": "adamw", "lr": 2e-4}, "seed": 42, "steps": None},
        "data": {"train": "a|b.jsonl"},
        "example": "model = open()",
    }
    return Card(**{**values, **changes})


def head(text: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(text.split("---\n")[1])
    return found


def test_its_head_is_what_hubs_read() -> None:
    assert head(model_card(card())) == {
        "base_model": "org/base",
        "base_model_relation": "finetune",
        "library_name": "transformers",
        "tags": ["peftkit", "lora", "chat"],
    }
    assert head(model_card(card(kind="adapter")))["library_name"] == "peft"


def test_a_licence_is_named_only_if_known() -> None:
    assert "license" not in head(model_card(card()))
    assert head(model_card(card(licence="apache-2.0")))["license"] == "apache-2.0"


def test_the_licence_is_the_bases_own(tmp_path: Path) -> None:
    assert licence_of(tmp_path) is None
    for text, expected in (("no head", None), ("---\nlicense: mit\n---\n# Base", "mit"), ("---\n[\n---\n", None)):
        (tmp_path / "README.md").write_text(text)
        assert licence_of(tmp_path) == expected


def test_it_tells_settings_data_metrics_and_versions() -> None:
    text = model_card(card(metrics={"validation loss": 1.25}, versions={"torch": "2.13.0"}))
    for row in (
        "| strategy | lora |",
        "| strategy.rank | 8 |",
        "| optim.lr | 0.0002 |",
        "| seed | 42 |",
        "| data.train | a\\|b.jsonl |",
        "| validation loss | 1.25 |",
        "| torch | 2.13.0 |",
    ):
        assert row in text
    assert "```python\nmodel = open()\n```" in text


def test_what_is_left_open_is_left_out() -> None:
    text = model_card(card())
    assert "steps" not in text
    assert "layers" not in text
    assert "## Evaluation" not in text
