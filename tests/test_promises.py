"""The equalities that users rely on: a step's gradient, and a split's score, do not depend on how the work is split.

Every case trains a tiny real model through the real flow and DeepSpeed. The oracle is plain torch: one row at a time
without padding, transformers' own mean loss times its number of targets.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from peftkit.config.run import Run
from peftkit.data.batches import step_rows
from peftkit.engine.optim import decays
from peftkit.engine.random_state import seed_all
from peftkit.engine.world import World
from peftkit.flows.job import make_job
from tests.launch import torchrun
from tests.tiny import save_tiny

TASKS = {"causal_lm": "llama", "chat": "qwen", "sequence_classification": "bert"}
STRATEGIES = ("full", "lora")
ROWS, TOTAL = 19, 8
"""Three steps, the last one of three rows."""
SPLITS = [
    (1, 8, "zero0"),
    (1, 2, "zero2"),
    *((2, 2, f"zero{stage}") for stage in range(4)),
    (2, 1, "zero0"),
    (2, 1, "zero3"),
]
"""(processes, rows of a micro-batch, DeepSpeed configuration)."""
pytestmark = pytest.mark.launch


def settings(data: Path, task: str, strategy: str, micro: int, zero: str) -> dict[str, Any]:
    return {
        "model": str(data / TASKS[task]),
        "task": task,
        "strategy": strategy,
        "data": {
            "train": str(data / f"{task}.jsonl"),
            "validation": str(data / f"{task}.jsonl"),
            "cache": str(data / "cache"),
        },
        "batch": {"total": TOTAL, "micro": micro},
        "optim": {"name": "adamw", "lr": 1e-2, "eps": 1e-5, "weight_decay": 0.1, "clip": 0.5},
        "schedule": {"name": "linear", "warmup": 0},
        "deepspeed": zero,
    }


def name_of(task: str, strategy: str, micro: int, zero: str) -> str:
    return f"{task}-{strategy}-{zero}-{micro}"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models and rows of very different lengths (and, in chat, with very different numbers of targets)."""
    folder = tmp_path_factory.mktemp("promises")
    for family in set(TASKS.values()):
        save_tiny(folder / family, family, **({"num_labels": 3} if family == "bert" else {}))
    rows = [(f"question {row} " + "and so on " * (row % 7), "word " * (1 + (row * row) % 17)) for row in range(ROWS)]
    kinds = {
        "causal_lm": [{"text": question + answer} for question, answer in rows],
        "chat": [{"prompt": question, "response": answer} for question, answer in rows],
        "sequence_classification": [
            {"text": question, "label": f"L{row % 3}"} for row, (question, _) in enumerate(rows)
        ],
    }
    for task, content in kinds.items():
        (folder / f"{task}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    return folder


@pytest.fixture(scope="module")
def trained(data: Path) -> dict[int, Path]:
    """Folder of results by number of processes: every case of a world in one launch."""
    folders = {}
    for processes in (1, 2):
        cases = {
            name_of(task, strategy, micro, zero): settings(data, task, strategy, micro, zero)
            for task in TASKS
            for strategy in STRATEGIES
            for world, micro, zero in SPLITS
            if world == processes
        }
        if processes == 1:
            again = settings(data, "chat", "lora", 2, "zero2")
            cases["checkpointed"] = again | {"model": {"path": again["model"], "gradient_checkpointing": True}}
        folders[processes] = data / f"results-{processes}"
        folders[processes].mkdir()
        listed = data / f"cases-{processes}.json"
        listed.write_text(json.dumps(cases))
        done = torchrun(processes, Path(__file__).with_name("steps_worker.py"), listed, folders[processes], timeout=800)
        assert done.returncode == 0, done.stdout[-4000:]
    return folders


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("task", TASKS)
def test_the_step_is_that_of_plain_torch_however_it_is_split(
    task: str, strategy: str, data: Path, trained: dict[int, Path]
) -> None:
    expected_steps, expected_weights = plain_torch(Run.model_validate(settings(data, task, strategy, 1, "zero0")))
    for processes, micro, zero in SPLITS:
        name = name_of(task, strategy, micro, zero)
        steps = json.loads((trained[processes] / f"{name}.json").read_text())["steps"]
        for key in ("loss", "grad_norm", "targets", "lr"):
            found = [step[key] for step in steps]
            assert found == pytest.approx([step[key] for step in expected_steps], rel=1e-5), (name, processes, key)
        weights = load_file(trained[processes] / f"{name}.safetensors")
        assert weights.keys() == expected_weights.keys()
        for parameter, weight in weights.items():
            torch.testing.assert_close(
                weight, expected_weights[parameter], rtol=1e-5, atol=1e-5, msg=f"{name} {parameter}"
            )


def test_activations_computed_again_change_no_step(trained: dict[int, Path]) -> None:
    expected = load_file(trained[1] / f"{name_of('chat', 'lora', 2, 'zero2')}.safetensors")
    found = load_file(trained[1] / "checkpointed.safetensors")
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=1e-6, atol=1e-6)


def test_a_score_has_the_same_last_digit_in_any_world(data: Path, tmp_path: Path) -> None:
    """Untrained, so that the weights are the same to the last bit: on 1, 2 and 3 processes, 19 rows in batches of 4."""
    untouched = {"steps": 1, "optim": {"name": "sgd", "lr": 1e-30}, "eval": {"batch": 4}}
    cases = {task: settings(data, task, "full", 2, "zero0") | untouched for task in TASKS}
    (tmp_path / "cases.json").write_text(json.dumps(cases))
    found: dict[str, list[Any]] = {task: [] for task in TASKS}
    for processes in (1, 2, 3):
        out = tmp_path / str(processes)
        out.mkdir()
        done = torchrun(processes, Path(__file__).with_name("steps_worker.py"), tmp_path / "cases.json", out)
        assert done.returncode == 0, done.stdout[-4000:]
        for task in TASKS:
            found[task].append(json.loads((out / f"{task}.json").read_text())["scores"])
    for task, scores in found.items():
        assert scores[0] == scores[1] == scores[2], task
        assert len(scores[0]) >= 3


def plain_torch(run: Run) -> tuple[list[dict[str, float]], dict[str, torch.Tensor]]:
    """The same training without DeepSpeed, padding, micro-batches or our losses."""
    job = make_job(run, World(0, 1, 0))
    seed_all(run.seed)
    model, store = job.model, job.prepared.train
    named = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    groups = [
        {
            "params": [weight for name, weight in named.items() if decays(name, weight) is decaying],
            "weight_decay": decay,
        }
        for decaying, decay in ((True, 0.1), (False, 0.0))
    ]
    optimizer = torch.optim.AdamW([group for group in groups if group["params"]], lr=1e-2, eps=1e-5)
    steps = []
    for step in range(job.steps):
        lr = 1e-2 * (1 - step / job.steps)
        for group in optimizer.param_groups:
            group["lr"] = lr
        losses = [row_loss(model, store[row]) for row in step_rows(step, len(store), TOTAL, run.seed)]
        targets = sum(count for _, count in losses)
        loss = sum(loss for loss, _ in losses) / targets
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(named.values(), 0.5)
        optimizer.step()
        steps.append({"loss": float(loss.detach()), "grad_norm": float(norm), "targets": targets, "lr": lr})
    return steps, {name: weight.detach() for name, weight in named.items()}


def row_loss(model: Any, features: dict[str, Any]) -> tuple[torch.Tensor, int]:
    """transformers' own mean loss of one row times its targets, and that number."""
    labels = torch.tensor([features["labels"]])
    count = int((labels[:, 1:] != -100).sum()) if labels.ndim == 2 else 1
    extra = {name: torch.tensor([features[name]]) for name in ("token_type_ids",) if name in features}
    return model(input_ids=torch.tensor([features["input_ids"]]), labels=labels, **extra).loss * count, count
