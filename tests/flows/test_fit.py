"""`--batch.micro auto`: the run is the one that has the number found, to the last bit, and what is found fits."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from peftkit.cli.main import main
from peftkit.config.run import Run
from peftkit.engine.loop import steps
from peftkit.engine.memory import held
from peftkit.engine.optim import Optimizer
from peftkit.engine.world import World, joined
from peftkit.flows.job import prepare_data, with_tokens
from peftkit.flows.train import train
from tests.conftest import Together
from tests.engine.odd import opened, optimizer
from tests.engine.test_memory import WEIGHTS, Wide
from tests.engine.test_nonfinite import Poisoned
from tests.flows.test_memory import data as data
from tests.flows.test_memory import limited
from tests.tiny import save_tiny


def settings(world: World, folder: Path, **more: Any) -> dict[str, Any]:
    if world.first:
        save_tiny(folder / "llama", "llama", attention_dropout=0.1)
        rows = [{"prompt": f"say {row}", "response": "word " * (1 + row % 9)} for row in range(24)]
        (folder / "chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        pairs = [{"prompt": f"say {row}", "chosen": "yes " * (1 + row % 5), "rejected": "no"} for row in range(24)]
        (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    world.wait()
    rows = "pairs" if more.get("task") == "preference" else "chat"
    data = {"train": str(folder / f"{rows}.jsonl")}
    base = {"model": str(folder / "llama"), "task": "chat", "data": data, "steps": 3, "strategy": "full"}
    return {**base, "batch": {"total": 8, "micro": "auto"}, "checkpoint": {"every": 2}, **more}


def weights(out: Path, step: int = 3) -> dict[str, torch.Tensor]:
    parts = (out / f"checkpoints/step-{step:06}").glob("*-*.safetensors")
    return {f"{part.name} {name}": value for part in sorted(parts) for name, value in load_file(part).items()}


def it_is_the_run_with_that_number(world: World, folder: Path, **more: Any) -> None:
    """Weights, moments and random numbers after three steps; the folder names the number."""
    told = settings(world, folder, **more)
    train(Run.model_validate({**told, "out": str(folder / "auto")}))
    world.wait()
    batch = batch_of(folder / "auto")
    assert batch["tokens"] == 8 // world.processes * longest(folder, told), "there is room for all"
    train(Run.model_validate({**told, "out": str(folder / "given"), "batch": batch}))
    world.wait()
    found, expected = weights(folder / "auto"), weights(folder / "given")
    assert found.keys() == expected.keys() and len(found) > 10
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []
    world.wait()


def batch_of(folder: Path) -> dict[str, Any]:
    """What a run says of its batches."""
    batch: dict[str, Any] = yaml.safe_load((folder / "config.yaml").read_text())["batch"]
    assert batch["micro"] is None
    return batch


def longest(folder: Path, told: dict[str, Any]) -> int:
    """Tokens of the longest row that a run learns."""
    return max(prepare_data(Run.model_validate(told))[1].train.lengths)


def a_resumed_run_keeps_what_was_found(world: World, folder: Path) -> None:
    """Also where the settings still say auto, and the machine would say something else by now."""
    told = settings(world, folder, out=str(folder / "run"))
    train(Run.model_validate({**told, "steps": 2}))
    world.wait()
    if world.first:
        file = folder / "run/config.yaml"
        found = f", tokens: {batch_of(folder / 'run')['tokens']},"
        assert file.read_text().count(found) == 1
        file.write_text(file.read_text().replace(found, ", tokens: 7,"))
    world.wait()
    train(Run.model_validate({**told, "resume": True}))
    world.wait()
    assert batch_of(folder / "run")["tokens"] == 7
    world.wait()


def state_is_foreseen(world: World, folder: Path, optim: str, **more: Any) -> None:
    """What `state_bytes` says an optimizer keeps of a weight is what it really keeps after a step."""
    model = Wide()
    engine = opened(model, "zero0", world, optimizer(optim, **more))
    batch = {"rows": torch.ones(6, 5), "labels": torch.zeros(6, dtype=torch.long), "way": "good"}
    list(steps(engine, [[batch]], Poisoned(), world, lambda step: 1.0))
    expected = Optimizer.model_validate({"name": optim, **more}).state_bytes * WEIGHTS
    assert held(engine, model).moments == pytest.approx(expected, rel=0.05, abs=0.02 * WEIGHTS)
    engine.close()


CHECKS: dict[str, Any] = {
    **{
        f"same-{zero}": partial(it_is_the_run_with_that_number, deepspeed=zero)
        for zero in ("zero0", "zero1", "zero2", "zero3")
    },
    "same-bf16": partial(
        it_is_the_run_with_that_number, precision="bf16", regularize={"ema": 0.9, "pull": 0.1, "r_drop": 1.0}
    ),
    "same-lora": partial(it_is_the_run_with_that_number, strategy="lora", deepspeed="zero3"),
    "same-stages": partial(
        it_is_the_run_with_that_number, strategy={"name": "layerwise", "last": 1, "unfreeze_every": 2}
    ),
    "same-preference": partial(it_is_the_run_with_that_number, task="preference"),
    "resumed": a_resumed_run_keeps_what_was_found,
}
CHECKS |= {
    f"state-{name}": partial(state_is_foreseen, optim=name, **more)
    for name, more in {"adamw": {}, "adagrad": {}, "lion": {}, "sgd": {"momentum": 0.9}, "adamw_8bit": {}}.items()
}


@pytest.mark.launch
@pytest.mark.parametrize("check", CHECKS)
def test_on_two_processes(check: str, together: Together) -> None:
    assert not together.wrong(__name__, check)


@pytest.mark.parametrize("zero", ["zero0", "zero2", "zero3"])
def test_alone_it_is_the_run_with_that_number(tmp_path: Path, zero: str) -> None:
    with joined() as alone:
        it_is_the_run_with_that_number(alone, tmp_path, deepspeed=zero)


@pytest.mark.parametrize(
    ("batch", "lengths", "expected"),
    [
        ({}, [1700, 20], {"micro": None, "tokens": 1700}),
        ({}, [30, 20], {"micro": None, "tokens": 1024}),
        ({}, [1, 1], {"micro": 4, "tokens": None}),
        ({"micro": 2}, [700, 20], {"micro": 2, "tokens": None}),
        ({"tokens": 64, "micro": 3}, [700, 20], {"micro": 3, "tokens": 64}),
        ({"micro": "auto"}, [700, 20], {"micro": "auto", "tokens": None}),
    ],
)
def test_a_run_that_names_no_size_gets_the_longest_rows(batch: Any, lengths: list[int], expected: Any) -> None:
    run = with_tokens(Run.model_validate({"batch": batch}), SimpleNamespace(train=SimpleNamespace(lengths=lengths)))
    assert run.batch.model_dump(include={"total", *expected}) == {"total": 16, **expected}
    assert with_tokens(run, SimpleNamespace(train=SimpleNamespace(lengths=[9]))) == run, "a run that goes on keeps it"


@pytest.mark.launch
def test_what_is_found_fits_and_all_rows_at_once_do_not(data: Path, tmp_path: Path) -> None:
    """Under a limit in which 64 rows burst (tests/flows/test_memory.py) some do not, and not only a single one."""
    done = limited(data, tmp_path / "run", 300, "--batch.micro", "auto")
    assert done.returncode == 0, done.stdout[-3000:]
    tokens = batch_of(tmp_path / "run")["tokens"]
    assert 4 * 128 <= tokens < 64 * 128
    assert f"micro-batches of up to {tokens:,} tokens" in done.stdout


def test_a_dry_run_leaves_it_open(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "--model", f"{data}/llama", "--task", "causal_lm", "--data", f"{data}/rows.jsonl", "--dry-run"]
    assert main([*words, "--batch.micro", "auto"]) == 0
    said = capsys.readouterr().out
    assert "micro-batches of as many rows as fit (--batch.micro auto)" in said
    assert '"train_micro_batch_size_per_gpu": "auto"' in said and "micro: auto" in said


def test_a_number_in_deepspeeds_file_contradicts_it(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "ds.json").write_text('{"train_micro_batch_size_per_gpu": 2, "zero_optimization": {"stage": 1}}')
    words = ["train", "--model", f"{data}/llama", "--task", "causal_lm", "--data", f"{data}/rows.jsonl", "--dry-run"]
    assert main([*words, "--batch.micro", "auto", "--deepspeed", f"{tmp_path}/ds.json"]) == 2
    assert "train_micro_batch_size_per_gpu is 2 there, and --batch.micro is auto" in capsys.readouterr().err
