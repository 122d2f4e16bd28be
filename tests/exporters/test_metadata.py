"""The card's head as huggingface_hub reads it back: keys that the hub knows, results with their values."""

from __future__ import annotations

import math
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard, ModelCardData

from peftkit.exporters.metadata import METRICS, PIPELINES, head, is_hub_name
from peftkit.metrics import Metric
from peftkit.tasks import Task

KNOWN = {
    *(
        "language",
        "license",
        "license_name",
        "license_link",
        "library_name",
        "tags",
        "datasets",
        "metrics",
        "base_model",
    ),
    *("base_model_relation", "new_version", "pipeline_tag", "thumbnail", "model-index"),
}
"""https://github.com/huggingface/hub-docs/blob/main/modelcard.md"""


def made(**changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "name": "tiny",
        "kind": "merged",
        "base": "org/base",
        "task": {"name": "sequence_classification"},
        "tags": ("peftkit",),
        "licence": "apache-2.0",
        "datasets": ["org/rows"],
        "metrics": {"validation accuracy": 0.75, "validation accuracy/low": 0.6, "validation accuracy/high": 0.9},
    }
    return head(**{**values, **changes})


def test_it_is_read_back_as_it_was_meant() -> None:
    card = ModelCard(f"---\n{yaml.safe_dump(made(), sort_keys=False)}---\n\n# tiny\n")
    data = card.data
    assert isinstance(data, ModelCardData)
    assert (data.base_model, data.base_model_relation, data.library_name) == ("org/base", "finetune", "transformers")
    assert (data.pipeline_tag, data.license, data.datasets) == ("text-classification", "apache-2.0", ["org/rows"])
    (result,) = data.eval_results or []
    assert (result.task_type, result.dataset_type, result.dataset_split) == (
        "text-classification",
        "org/rows",
        "validation",
    )
    assert (result.metric_type, result.metric_value) == ("accuracy", 0.75)
    assert result.metric_name == "validation accuracy (95 % interval 0.6 to 0.9)"
    assert data.to_dict() == made()  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("kind", ["adapter", "merged", "gguf", "of-a-plug-in"])
@pytest.mark.parametrize("task", [*PIPELINES, "seq2seq"])
def test_its_keys_are_the_hubs(kind: str, task: str) -> None:
    found = made(kind=kind, task={"name": task})
    assert set(found) <= KNOWN
    assert found["base_model_relation"] == ("adapter" if kind == "adapter" else "finetune")
    assert ("pipeline_tag" in found) == ("model-index" in found) == (task != "seq2seq")


def test_every_task_and_metric_that_is_named_is_one_of_ours() -> None:
    assert {*PIPELINES, "seq2seq"} == set(Task.registry)
    assert set(METRICS) <= set(Metric.registry)


def test_what_has_no_name_on_the_hub_is_left_out() -> None:
    found = made(base="/models/base", licence=None, datasets=[], metrics={"test loss": math.nan, "test f1": 0.5})
    assert not {"base_model", "base_model_relation", "license", "datasets"} & set(found)
    (result,) = found["model-index"][0]["results"]
    assert result["dataset"] == {"type": "private", "name": "test rows", "split": "test"}
    assert [one["type"] for one in result["metrics"]] == ["f1"]
    names = ("org/base", "gpt2", "/org/base", "./base", "org/base/x", "a b/c", "org/base\n: x")
    assert [is_hub_name(name) for name in names] == [True, True, False, False, False, False, False]


def test_languages_are_those_of_the_task() -> None:
    task = {"name": "seq2seq", "source_lang": "eng_Latn", "target_lang": "de"}
    assert (made(task=task)["language"], made(task=task)["pipeline_tag"]) == (["eng", "de"], "translation")
    assert "language" not in made(task={"name": "speech_recognition", "language": "Welsh language"})
