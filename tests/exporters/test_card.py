"""The model card tells what is known, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from peftkit.exporters.card import Card, licence_of, limits, model_card
from peftkit.exporters.history import History


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
        "pipeline_tag": "text-generation",
        "tags": ["peftkit", "lora", "chat"],
    }
    assert head(model_card(card(kind="adapter")))["library_name"] == "peft"


def test_a_licence_is_named_only_if_known() -> None:
    assert "license" not in head(model_card(card()))
    assert head(model_card(card(licence="apache-2.0")))["license"] == "apache-2.0"


def test_the_licence_is_the_bases_own(tmp_path: Path) -> None:
    assert licence_of(tmp_path) is None
    texts = {
        "no head": None,
        "---\nlicense: mit\n---\n# Base": "mit",
        "---\n[\n---\n": None,
        "---\nlicense: |\n  mit\n  more: x\n---\n": None,
    }
    for text, expected in texts.items():
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


def test_numbers_have_their_intervals_and_the_data_its_rows() -> None:
    splits = {
        "train": [{"name": "a|b.jsonl", "digest": "0f.jsonl", "rows": 9, "held_out": {"validation": [2]}}],
        "given": {},
    }
    metrics = {
        "validation f1": 0.5,
        "validation f1/low": 0.25,
        "validation f1/high": 0.75,
        "validation f1/macro/low": 0.1,
    }
    text = model_card(
        card(metrics=metrics, history=History(splits, "5a"), curves=True, figures={"KL": "0"}, serving=["x"])
    )
    for words in (
        "| validation f1 | 0.5 (95 % interval 0.25 to 0.75) |",
        "| train: a\\|b.jsonl | 9 rows, 1 held out for validation, sha256 0f |",
        "| splits.json (which rows, by number) | sha256 5a |",
        "![losses over steps](curves.svg)",
        "- The validation numbers are of 1 row like those that it learnt.",
        "- No rows were kept for a test",
        "- The licence of the base is not known here",
        "| KL | 0 |",
        "## Serve\n\n- x\n",
    ):
        assert words in text, words
    assert "macro" not in text
    assert "How sure the numbers are" not in text


def test_limits_say_what_was_not_done() -> None:
    told = limits(card())
    assert told[0] == "Nothing of it was scored on rows that it did not learn."
    known = limits(
        card(metrics={"test loss": 1.0, "anchor loss": 2.0}, licence="mit", task={"name": "x", "language": "de"})
    )
    assert not [
        line for line in known if "languages" in line or "licence" in line or "before" in line or "No rows" in line
    ]


def test_what_is_left_open_is_left_out() -> None:
    text = model_card(card())
    assert "steps" not in text
    assert "layers" not in text
    assert "## Evaluation" not in text
