"""What a fresh process is sent for, it comes back with; what goes wrong there is told."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from peftkit.errors import ExportError
from peftkit.evaluation.fresh import Errand, ask_fresh_process
from peftkit.evaluation.verify import Question, answer
from peftkit.exporters import Merged
from peftkit.exporters.base import Reading
from tests.tiny import save_tiny
from tests.trained import language_rows

pytestmark = pytest.mark.usefixtures("new_processes")


def test_a_real_process_answers_as_the_model_does(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base", "llama")
    task, batches = language_rows()
    inputs = [{"input_ids": batch["input_ids"]} for batch in batches]
    mask = torch.zeros(2, 16, dtype=torch.bool)
    mask[0, 3:6] = True
    asked = Question(inputs, [mask, None], [batches[0]["input_ids"][0, :6]])
    probe = Question(inputs[:1], [None], [batches[1]["input_ids"][0, :3]], words=5)
    rows = [([0, 1], batches[0]), ([2, 3], batches[1])]
    reading = Reading("AutoModelForCausalLM", str(base))
    report = ask_fresh_process(Merged(), base, reading, Errand(asked, probe, rows, task, times=True), "cpu")
    model = AutoModelForCausalLM.from_pretrained(base)
    expected, probed = answer(model, asked), answer(model, probe)
    assert report.answer.logits.shape == (3 + 32, expected.logits.shape[-1])
    torch.testing.assert_close(report.answer.logits, expected.logits)
    assert report.probe is not None
    torch.testing.assert_close(report.probe.logits, probed.logits)
    assert [text.tolist() for text in report.answer.texts] == [text.tolist() for text in expected.texts]
    assert len(report.probe.texts[0]) == 5
    assert [number for number, _ in report.records] == [0, 1, 2, 3]
    losses = torch.nn.functional.cross_entropy(
        model(batches[0]["input_ids"]).logits[0, :-1], batches[0]["labels"][0, 1:], reduction="sum"
    )
    assert report.records[0][1]["loss"] == pytest.approx(float(losses), rel=1e-5)
    assert report.load_seconds > 0
    assert report.speed.rows
    assert report.speed.tokens
    assert report.versions["torch"] == torch.__version__


def test_one_that_cannot_be_opened_is_told(tmp_path: Path) -> None:
    asked = Question([{"input_ids": torch.ones(1, 2, dtype=torch.long)}], [None])
    with pytest.raises(
        ExportError, match=r"cannot be opened or run \(exit code 1\)(?s:.*)has no weights in safetensors"
    ):
        ask_fresh_process(Merged(), tmp_path, Reading("AutoModelForCausalLM", "none"), Errand(asked), "cpu")
