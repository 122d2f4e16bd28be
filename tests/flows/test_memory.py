"""A training whose memory is full says what held it and what helps; what it says helps does help."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from subprocess import CompletedProcess
from types import SimpleNamespace
from typing import Any

import pytest

from peftkit.config.run import Run
from peftkit.engine.memory import Held
from peftkit.flows.memory import Full, remedies
from tests.launch import run
from tests.tiny import save_tiny, tiny

LIMITED = """
import resource, sys
import psutil, deepspeed, peft, transformers
import peftkit.flows.train
from peftkit.cli.main import main
from peftkit.engine.open import ready_deepspeed
ready_deepspeed()
most = psutil.Process().memory_info().vms + int(sys.argv[1]) * 2**20
resource.setrlimit(resource.RLIMIT_AS, (most, most))
sys.exit(main(sys.argv[2:]))
"""
"""The command line with so many more MiB than it takes to start."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("full")
    save_tiny(folder / "llama", "llama", hidden_size=128, intermediate_size=512, num_hidden_layers=4)
    rows = [{"text": f"{row} " + "word " * 60} for row in range(64)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def limited(data: Path, out: Path, mib: int, *more: str) -> CompletedProcess[str]:
    words = [
        "train",
        "--model",
        f"{data}/llama",
        "--task",
        "causal_lm",
        "--data",
        f"{data}/rows.jsonl",
        "--out",
        f"{out}",
    ]
    words += [
        "--data.holdout",
        "0",
        "--batch.total",
        "64",
        "--steps",
        "2",
        "--strategy",
        "full",
        "--eval.before",
        "false",
    ]
    words += ["--deepspeed", "zero0"]  # the others take 200 MiB to reduce gradients in
    # A limit of the address space counts what malloc keeps in pieces: let it keep one heap, and no tensor in it.
    malloc = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
    return run([sys.executable, "-c", LIMITED, str(mib), *words, *more], OMP_NUM_THREADS="1", **malloc)


@pytest.mark.launch
def test_what_held_it_is_told_and_the_first_advice_is_good(data: Path, tmp_path: Path) -> None:
    full = limited(data, tmp_path / "full", 300, "--batch.micro", "64")
    assert full.returncode == 1, full.stdout[-3000:]
    said = " ".join(full.stdout.split())
    assert "out of memory: this process, before its first step was done" in said
    parts = re.search(
        r"it held at most: weights (\d+) MiB, gradients (\d+) \w+, optimizer (\d+) \w+, activations (\d+) MiB, Python",
        said,
    )
    assert parts, said[-2000:]
    assert int(parts[1]) in (4, 5, 6) and 100 < int(parts[4]) < 400
    advice = re.findall(r"(--[\w.]+)( [\w.]+)? \(about (\d+) (?:MiB|GiB) less\)", said)
    assert len(advice) == 3 and advice[0][:2] == ("--batch.micro", " 16"), advice
    assert "Traceback" not in full.stdout
    failure = json.loads((tmp_path / "full/errors/attempt-0/process-0.json").read_text())
    assert failure["kind"] == "memory" and failure["type"] == "OutOfMemoryError"
    again = limited(data, tmp_path / "again", 300, *"".join(advice[0][:2]).split())
    assert again.returncode == 0, again.stdout[-3000:]


def job(run: Run, processes: int = 1, zero: int = 2) -> Any:
    """As much of a Job as the advice looks at."""
    model = tiny("llama", num_hidden_layers=4)
    for name, weight in model.named_parameters():
        weight.requires_grad = run.strategy.name == "full" or "norm" in name
    return SimpleNamespace(
        model=model,
        precision="fp32" if run.precision == "auto" else run.precision,
        deepspeed={"zero_optimization": {"stage": zero}},
        world=SimpleNamespace(processes=processes),
        prepared=SimpleNamespace(train=SimpleNamespace(lengths=[512, 100])),
    )


def advice(full: Full, processes: int = 1, zero: int = 2, **settings: Any) -> list[str]:
    run = Run.model_validate(settings)
    return [one.setting for one in remedies(run, job(run, processes, zero), full)]


G = 2**30
FULL = {"strategy": "full", "precision": "bf16"}


@pytest.mark.parametrize(
    ("settings", "full", "expected"),
    [
        # Activations: fewer rows first, then what keeps fewer of them, then shorter rows.
        ({**FULL, "batch": {"micro": 4}}, Full(Held(G, G, 4 * G, 2 * G), 90 * G, G),
         ["--batch.micro 1", "--model.gradient_checkpointing", "--data.max_length 256"]),
        ({**FULL, "batch": {"tokens": 4096}}, Full(Held(G, G, 4 * G, 2 * G), 90 * G, G),
         ["--batch.tokens 1024", "--model.gradient_checkpointing", "--data.max_length 256"]),
        # The optimizer: adapters have hardly any, several processes share it, 8 bits have a quarter of its moments.
        ({**FULL, "zero": 0, "processes": 4}, Full(Held(2 * G, 2 * G, 60 * G, 40 * G), 0, G),
         ["--strategy lora", "--deepspeed zero2", "--optim adamw_8bit"]),
        # The weights, on several processes: only cutting them helps.
        ({**FULL, "processes": 4, "strategy": "lora", "batch": {"micro": 1}}, Full(Held(60 * G, 0, 0, 0), G, G),
         ["--deepspeed zero3"]),
        # What was taken already is not said again.
        ({**FULL, "strategy": "lora", "batch": {"micro": 1}, "model": {"gradient_checkpointing": True}},
         Full(Held(0, 0, 0, 0), 64 * G, G), ["--data.max_length 256"]),
        ({"strategy": "lora", "batch": {"micro": 1}, "precision": "fp32"}, Full(Held(80 * G, 0, 0, 0), G, G),
         ["--precision bf16"]),
    ],
)  # fmt: skip
def test_the_settings_that_save_most_come_first(settings: dict[str, Any], full: Full, expected: list[str]) -> None:
    found = advice(full, settings.pop("processes", 1), settings.pop("zero", 2), **settings)
    assert found[: len(expected)] == expected
