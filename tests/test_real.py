"""The main job on a real pretrained model and real text: SmolLM2-135M-Instruct learns to describe Python functions.

From Python, as a notebook would call it; the weights come from a package of the registry (extra `demo`).
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

import peftkit
from peftkit.flows.compare import compare
from peftkit.flows.job import prepare_data
from peftkit.models.find import find
from tests.test_promises import row_loss

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("real") / "run"
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    peftkit.train(
        peftkit.Run(
            strategy={"name": "lora", "rank": 8},
            data={"limit": 96, "max_length": 160},
            batch={"total": 8, "micro": 4},
            steps=10,
            optim={"name": "adamw", "lr": 1e-3},
            eval={"rows": 12},
            out=folder,
        )
    )
    peftkit.export(folder, to="merged")
    torch.set_num_threads(threads)
    return folder


def test_it_learns(run: Path) -> None:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    before, after = (row["loss"] for row in rows if row.get("split") == "validation")
    assert after < before - 0.5


def test_the_merged_model_scores_as_the_run_said_by_transformers_own_loss(run: Path) -> None:
    settings = peftkit.Run.model_validate(saved_run(run))
    _, prepared = prepare_data(settings)
    model = AutoModelForCausalLM.from_pretrained(run / "export/merged", dtype=torch.float32).eval()
    with torch.no_grad():
        losses = [row_loss(model, prepared.validation[row]) for row in range(12)]
    found = sum(float(loss) for loss, _ in losses) / sum(count for _, count in losses)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert found == pytest.approx(rows[-1]["loss"], rel=1e-4)


def test_the_adapter_loads_by_peft_alone_and_equals_the_merged_model(run: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(find(peftkit.Run().model), dtype=torch.float32)
    tuned = PeftModel.from_pretrained(base, run / "export/adapter").eval()
    merged = AutoModelForCausalLM.from_pretrained(run / "export/merged", dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(run / "export/merged")
    words = tokenizer("def area(width, height): return width * height", return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(merged(**words).logits, tuned(**words).logits, rtol=1e-4, atol=1e-3)
    assert tokenizer.chat_template
    certificate = json.loads((run / "export/merged/certificate.json").read_text())
    assert certificate["figures"]["kl"] < certificate["limits"]["kl"]


def test_compare_answers_with_both(run: Path) -> None:
    ((prompt, expected, before, after),) = compare(run, rows=1)
    assert "def " in prompt and expected and before != after


def saved_run(folder: Path) -> dict[str, object]:
    from peftkit.config.read import load

    return load(folder / "config.yaml").model_dump()
