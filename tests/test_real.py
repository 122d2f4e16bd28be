"""The main job on a real pretrained model and real text: SmolLM2-135M-Instruct learns to describe Python functions.

From Python, as a notebook would call it; the weights come from a package of the registry (extra `demo`).
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from rouge_score.rouge_scorer import RougeScorer
from transformers import AutoModelForCausalLM, AutoTokenizer

import peftkit
from peftkit.data.demo import tables
from peftkit.flows.compare import Asked, compare
from peftkit.flows.job import prepare_data
from peftkit.models.find import find
from tests.cases import next_token_loss

pytestmark = [pytest.mark.real, pytest.mark.timeout(1800)]  # the first of them trains the real model


@pytest.fixture(scope="module")
def run(new_processes: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """On one thread: two of them spin for each other where another worker has one of the cores."""
    folder = tmp_path_factory.mktemp("real") / "run"
    peftkit.train(
        peftkit.Run(
            strategy={"name": "lora", "rank": 8},
            data={"limit": 96, "max_length": 160},
            batch={"total": 8, "micro": 4},
            steps=10,
            optim={"name": "adamw", "lr": 1e-3},
            eval={"rows": 12, "metrics": ["token_accuracy", "rouge"]},
            generate={"max_new_tokens": 24},
            out=folder,
        )
    )
    peftkit.export(folder, to="merged")
    return folder


def test_it_learns(run: Path) -> None:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    before, after = (row["loss"] for row in rows if row.get("split") == "validation")
    assert after < before - 0.5


def test_it_beats_copying(run: Path) -> None:
    """ROUGE-L of its answers against the words of the function's own name, which say much of what it does."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    before, after = (row["rouge"] for row in rows if row.get("split") == "validation")
    asked = tables()["validation"].rows[:12]
    names = [" ".join(re.findall(r"def (\w+)", row["prompt"])[0].split("_")) for row in asked]
    scorer = RougeScorer(["rougeL"])
    copied = [scorer.score(row["response"], name)["rougeL"].fmeasure for row, name in zip(asked, names, strict=True)]
    simple = sum(copied) / len(copied)
    print(f"ROUGE-L {after:.3f}; before {before:.3f}, the name {simple:.3f}")
    assert after > max(before, simple) + 0.03


def test_the_merged_model_scores_as_the_run_said_by_transformers_own_loss(run: Path) -> None:
    settings = peftkit.Run.model_validate(saved_run(run))
    _, prepared = prepare_data(settings)
    model = AutoModelForCausalLM.from_pretrained(run / "export/merged", dtype=torch.float32).eval()
    with torch.no_grad():
        losses = [next_token_loss(model, prepared.validation[row], {}) for row in range(12)]
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
    (change,) = compare(Asked([str(run)], rows=1)).changes
    assert "def " in change.asked and change.truth and change.before != change.after


def saved_run(folder: Path) -> dict[str, object]:
    from peftkit.config.read import load

    return load(folder / "config.yaml").model_dump()
