"""What a certificate tells besides the logits: the task's metrics before and after, what it costs, a probe for any inputs."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from peftkit.config.run import Run
from peftkit.evaluation.certificate import Certificate
from peftkit.exporters import Exporter, Merged
from peftkit.flows.certify import Checks, interview, summary
from peftkit.flows.evaluate import Asked as Scored
from peftkit.flows.evaluate import evaluate
from peftkit.flows.export import export_trained, load_run_base
from peftkit.flows.held import held_out, held_rows
from peftkit.flows.verify import Asked, verify
from tests.cases import CASES
from tests.fresh import in_this_process
from tests.matrix import folder_of
from tests.tiny import save_tiny
from tests.trained import label_rows, shake


def certified(case: str, tmp_path: Path, exporter: Exporter = Merged()) -> tuple[Path, Certificate]:  # noqa: B008  # frozen
    """An export of a model that is as if trained, and its certificate."""
    what, family = CASES[case], CASES[case].families[0]
    base = save_tiny(tmp_path / folder_of(case, family), family, **what.model)
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in what.rows(tmp_path)[:8]))
    run = Run.model_validate(
        {
            "model": str(base), "task": {"name": case.split()[0], **what.settings}, "precision": "fp32",
            "data": {"train": str(file), "validation": str(file), "cache": str(tmp_path / "cache")},
            "generate": {"max_new_tokens": 4},
        }
    )  # fmt: skip
    run, found, prepared = load_run_base(run, {})
    checks = Checks(held=held_rows(run, found, prepared))
    batches = held_out(run, found, prepared)
    model = shake(run.strategy.adapt(found.model, found.fresh), 0.05)
    place = tmp_path / "export"
    with in_this_process():
        made = export_trained(exporter, model, found.processor, run, batches, place, source=found.source, checks=checks)
    return place, made


@pytest.mark.parametrize(
    "case",
    ["sequence_classification", "sequence_classification encoder_decoder", "preference", "speech_recognition", "multiple_choice"],
)  # fmt: skip
def test_its_metrics_are_those_of_an_evaluation_and_anyone_can_ask_again(case: str, tmp_path: Path) -> None:
    place, made = certified(case, tmp_path)
    assert made.scored == 8
    numbers = evaluate(place, Scored(rows=str(tmp_path / "rows.jsonl"), generate={"max_new_tokens": 4}))
    assert {"loss"} < set(made.metrics)
    for name, score in made.metrics.items():
        if score.export is not None:
            assert score.export == pytest.approx(numbers[name], rel=1e-4, abs=1e-6), name
            assert score.trained == pytest.approx(score.export, rel=1e-4, abs=1e-6), name
            assert score.difference == pytest.approx(score.export - score.trained, abs=1e-12)
    assert made.probe is not None
    with in_this_process():
        assert verify(place, Asked()).problems == []


def test_it_says_what_the_export_costs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "onnxruntime", raising=False)  # another test may have imported it here
    place, made = certified("causal_lm", tmp_path)
    export, trained = made.costs["export"], made.costs["trained"]
    assert 0 < export.bytes <= sum(file.stat().st_size for file in place.iterdir())
    assert trained.bytes > 1000
    for cost in (export, trained):
        assert cost.rows_per_second
        assert cost.tokens_per_second
    assert export.load_seconds
    assert {"torch", "transformers", "python"} <= set(made.versions)
    assert "onnxruntime" not in made.versions
    shown = [list(column.cells) for column in summary(made, place).columns]
    assert {"perplexity", "size", "tokens written / s", "what training changed"} <= set(shown[0])


def test_the_base_can_be_checked_by_anyone(tmp_path: Path) -> None:
    """By name, as `sha256sum` tells it."""
    _, made = certified("sequence_classification", tmp_path)
    assert set(made.base_files) == {"config.json", "model.safetensors"}
    for name, told in made.base_files.items():
        assert hashlib.sha256((Path(made.base) / name).read_bytes()).hexdigest() == told


def test_a_model_that_a_probe_cannot_ask_has_none(tmp_path: Path) -> None:
    class Choosy(torch.nn.Module):
        """Takes the rows that it knows, and no others."""

        def __init__(self, model: Any) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: torch.Tensor, **rest: Any) -> Any:
            if input_ids.shape[-1] == 16:
                raise ValueError("not those")
            return self.model(input_ids=input_ids, **rest)

    base = save_tiny(tmp_path / "base", "bert", num_labels=3)
    model = Choosy(AutoModelForSequenceClassification.from_pretrained(base))
    task, batches = label_rows()
    wide = [
        {name: value.repeat(1, 2) if value.ndim == 2 else value for name, value in batch.items()} for batch in batches
    ]
    before = interview(model, task, wide, None)
    assert before.probed is None
    assert len(before.expected.logits) == 8
