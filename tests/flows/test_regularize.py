"""Regularisation through the whole flow: resumed to the bit, scored and exported with the averaged weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from peftkit.config.regularize import averaging_clashes, clashes
from peftkit.config.run import Run
from peftkit.engine.checkpoint import read_result, read_trained
from peftkit.errors import ConfigError
from peftkit.flows.export import export
from peftkit.flows.train import train
from peftkit.run_folder import RunFolder
from tests.tiny import save_tiny

ALL = {"neftune": 5, "r_drop": 1, "ema": 0.5, "pull": 0.5}
STEPS = 6


def settings(folder: Path, **more: Any) -> dict[str, Any]:
    return {
        "model": str(folder / "llama"),
        "task": "causal_lm",
        "strategy": "full",
        "data": {
            "train": str(folder / "texts.jsonl"),
            "validation": str(folder / "texts.jsonl"),
            "cache": str(folder / "cache"),
        },
        "batch": {"total": 4, "micro": 2},
        "steps": STEPS,
        "optim": {"lr": 1e-2},
        "eval": {"before": False, "every": 2},
        "checkpoint": {"every": 2, "keep": 0},
        "regularize": ALL,
    } | more


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("regularize")
    save_tiny(folder / "llama", "llama", attention_dropout=0.1)
    texts = [f"text {row} " + "and so on " * (1 + row % 4) for row in range(12)]
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    train(Run.model_validate(settings(folder, out=str(folder / "run"))))
    return folder


@pytest.mark.launch
def test_resumed_it_is_the_same_to_the_bit(folder: Path, tmp_path: Path) -> None:
    """Noise, dropout, average and pull: after step 4, which the copy has as its newest checkpoint."""
    shutil.copytree(folder / "run", tmp_path / "run")
    shutil.rmtree(RunFolder(tmp_path / "run").checkpoint(STEPS))
    train(Run.model_validate(settings(folder, out=str(tmp_path / "run"), resume=True)))
    for averaged in (False, True):
        expected = read_result([RunFolder(folder / "run").checkpoint(STEPS)], averaged)
        found = read_result([RunFolder(tmp_path / "run").checkpoint(STEPS)], averaged)
        assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert told(tmp_path / "run") == told(folder / "run")


def told(run: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl, without what the machine does to them."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in ("seconds", "memory")} for row in rows]


@pytest.mark.launch
def test_the_mean_of_the_averages_is_exported(folder: Path) -> None:
    exported = load_file(export(folder / "run", checkpoint="average") / "model.safetensors")
    steps = [RunFolder(folder / "run").checkpoint(step) for step in (2, 4, 6)]
    expected = read_result(steps, averaged=True)
    assert all(torch.equal(exported[name], expected[name]) for name in exported)
    name = "model.layers.0.mlp.up_proj.weight"
    own = read_trained(steps[-1])[name]
    assert (exported[name] - own).abs().max() > 1e-4


@pytest.mark.launch
def test_the_average_is_scored(folder: Path) -> None:
    """The last validation's loss is that of a plain model with the averaged weights."""
    from transformers import AutoTokenizer, LlamaForCausalLM

    rows = [json.loads(line) for line in (folder / "run/metrics.jsonl").read_text().splitlines()]
    scored = [row["loss"] for row in rows if row.get("split") == "validation"]
    model = LlamaForCausalLM.from_pretrained(folder / "llama")
    model.load_state_dict(read_result([RunFolder(folder / "run").checkpoint(STEPS)], averaged=True), strict=False)
    tokenizer = AutoTokenizer.from_pretrained(folder / "llama")
    assert len(scored) == STEPS // 2
    assert scored[-1] == pytest.approx(mean_loss(model.eval(), tokenizer, folder), rel=1e-5)


def mean_loss(model: Any, tokenizer: Any, folder: Path) -> float:
    from peftkit.tasks import Task

    task, total, targets = Task.model_validate("causal_lm"), 0.0, 0
    for line in (folder / "texts.jsonl").read_text().splitlines():
        batch = task.collate([task.encode(json.loads(line), tokenizer, 128)], tokenizer)
        with torch.no_grad():
            total += float(task.loss(model(**task.inputs(batch)), batch))
        targets += task.targets(batch)
    return total / targets


@pytest.mark.launch
def test_a_model_without_dropout_is_refused_before_the_first_step(folder: Path, tmp_path: Path) -> None:
    save_tiny(tmp_path / "llama", "llama")
    with pytest.raises(ConfigError, match=r"nothing drops out in this model; give --model.dropout"):
        train(Run.model_validate(settings(folder, model=str(tmp_path / "llama"), out=str(tmp_path / "run"))))
    assert not (tmp_path / "run/config.yaml").exists()


def test_what_does_not_go_with_the_rows_is_refused_before_the_first_step(folder: Path, tmp_path: Path) -> None:
    """That the rows have several labels each is known only when they are read."""
    rows = [{"text": f"film {row}", "label": ["a", "b"] if row % 2 else ["a"]} for row in range(8)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    more = {"task": "sequence_classification", "data": str(tmp_path / "rows.jsonl"), "out": str(tmp_path / "run")}
    with pytest.raises(ConfigError, match="with problem multi_label predicts something else"):
        train(Run.model_validate(settings(folder, **more)))
    assert not (tmp_path / "run/config.yaml").exists()


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (
            {"strategy": "lora", "regularize": {"pull": 0.1}},
            "--regularize.pull 0.1 pulls trained weights to the base's",
        ),
        (
            {"regularize": {"ema": 0.9}, "deepspeed": "zero3_nvme"},
            "--regularize.ema needs the optimizer's state in memory",
        ),
        (
            {"regularize": {"r_drop": 1}, "task": {"name": "sequence_classification", "problem": "multi_label"}},
            "--task sequence_classification with problem multi_label predicts something else",
        ),
        ({"checkpoint": {"final": "average", "keep": 2}}, "--checkpoint.keep 2 leaves fewer; give --checkpoint.keep 3"),
    ],
)
def test_what_does_not_go_together_is_said(more: dict[str, Any], told: str) -> None:
    run = Run.model_validate({"strategy": "full", **more})
    (problem,) = [*clashes(run), *averaging_clashes(run)]
    assert told in problem


def test_what_goes_together_is_not() -> None:
    for more in (
        {"regularize": ALL},
        {"strategy": "lora", "regularize": {**ALL, "pull": 0}},
        {"checkpoint": {"final": "average", "keep": 0}},
        {"checkpoint": {"keep": 1}},
        {"checkpoint": {"final": "average", "keep": 3}},
    ):
        run = Run.model_validate({"strategy": "full", **more})
        assert [*clashes(run), *averaging_clashes(run)] == []
