"""`peftkit train` as users start it: launchers, folders, interruptions, early stopping."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.launch import BIN, ROOT, environment, run
from tests.tiny import save_tiny

pytestmark = pytest.mark.launch
ROWS = 40


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("train")
    save_tiny(folder / "llama", "llama", attention_dropout=0.1)
    rows = [{"prompt": f"say {row}", "response": "word " * (1 + row % 5)} for row in range(ROWS)]
    (folder / "chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def words(data: Path, out: Path, *more: str) -> list[str]:
    common = ["--model", f"{data}/llama", "--data", f"{data}/chat.jsonl", "--out", f"{out}", "--batch.total", "8"]
    return [*common, "--batch.micro", "2", "--eval.before", "false", *more]


def two(*settings: str) -> list[str]:
    """Two processes under DeepSpeed's own launcher."""
    return [
        str(BIN / "deepspeed"),
        "--num_accelerators",
        "2",
        "--master_port",
        str(free_port()),
        str(ROOT / "launch/train.py"),
        *settings,
    ]


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def final_weights(folder: Path) -> dict[str, torch.Tensor]:
    newest = max((folder / "checkpoints").iterdir())
    return {name: value for part in newest.glob("trained-*") for name, value in load_file(part).items()}


def test_deepspeeds_launcher_leaves_a_whole_run_folder(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = run(two(*words(data, out, "--strategy", "lora", "--steps", "6", "--eval.every", "3")))
    assert done.returncode == 0, done.stdout[-3000:]
    assert done.stdout.count("step 6/6") == 1, "one process speaks for all"
    names = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert {"config.yaml", "metrics.jsonl", "logs/process-0.log", "logs/process-1.log"} <= names
    assert {"export/adapter/adapter_model.safetensors", "export/adapter/certificate.json"} <= names
    assert [path.name for path in sorted((out / "checkpoints").iterdir())] == ["step-000005", "step-000006"]
    steps = [row for row in rows_of(out) if "split" not in row]
    assert [row["step"] for row in steps] == [1, 2, 3, 4, 5, 6]
    assert set(steps[0]) >= {"step", "loss", "grad_norm", "lr", "targets", "seconds"}
    evaluations = [row for row in rows_of(out) if "split" in row]
    assert [(row["step"], row["split"]) for row in evaluations] == [(3, "validation"), (6, "validation")]
    assert yaml.safe_load((out / "config.yaml").read_text())["out"] == str(out)


CASES = {
    "lora-zero2": ["--strategy", "lora", "--strategy.dropout", "0.1", "--deepspeed", "zero2"],
    "full-zero3": ["--strategy", "full", "--deepspeed", "zero3"],
    "unfreezing-zero1": ["--strategy", "layerwise", "--strategy.unfreeze_every", "7", "--deepspeed", "zero1"],
}


@pytest.mark.parametrize("case", CASES)
def test_killed_and_resumed_is_bit_for_bit_uninterrupted(case: str, data: Path, tmp_path: Path) -> None:
    """SIGKILL to every process at once, whenever the eighth step's row is on disk; five steps are an epoch."""
    settings = [*CASES[case], "--steps", "23", "--checkpoint.every", "3", "--optim.weight_decay", "0.1"]
    whole = run(two(*words(data, tmp_path / "whole", *settings)))
    assert whole.returncode == 0, whole.stdout[-3000:]
    killed = two(*words(data, tmp_path / "killed", *settings))
    kill_at_step(8, killed, tmp_path / "killed")
    resumed = run([*two("--out", str(tmp_path / "killed"), "--resume")])
    assert resumed.returncode == 0, resumed.stdout[-3000:]
    expected, found = final_weights(tmp_path / "whole"), final_weights(tmp_path / "killed")
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    timeless = [
        [{**row, "seconds": 0, "memory": 0} for row in rows_of(tmp_path / name)] for name in ("whole", "killed")
    ]
    assert timeless[0] == timeless[1], "metrics.jsonl has every step once"


def kill_at_step(step: int, command: list[str], out: Path) -> None:
    with subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=ROOT,
        env=environment(),
        start_new_session=True,
    ) as process:
        deadline = time.monotonic() + 200
        while time.monotonic() < deadline and process.poll() is None:
            if (out / "metrics.jsonl").exists() and f'"step": {step},' in (out / "metrics.jsonl").read_text():
                break
            time.sleep(0.002)
        assert process.poll() is None, "it ended before it could be killed"
        kill_tree(process.pid)


def kill_tree(pid: int) -> None:
    """End a process and all that it started, the workers first (DeepSpeed puts its own in other process groups)."""
    import psutil

    family = [*psutil.Process(pid).children(recursive=True)[::-1], psutil.Process(pid)]
    for process in family:
        if process.is_running():
            os.kill(process.pid, signal.SIGKILL)


def one(*settings: str) -> subprocess.CompletedProcess[str]:
    return run([sys.executable, str(ROOT / "launch/train.py"), *settings])


def test_a_damaged_checkpoint_is_named_and_passed_over(data: Path, tmp_path: Path) -> None:
    settings = words(data, tmp_path / "run", "--strategy", "head_only", "--steps", "6", "--checkpoint.every", "2")
    assert one(*settings).returncode == 0
    (damaged,) = (tmp_path / "run/checkpoints/step-000006").glob("trained-*")
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    done = one("--out", str(tmp_path / "run"), "--resume")
    assert done.returncode == 0, done.stdout
    assert "step-000006: trained-00001-of-00001.safetensors is damaged" in done.stdout
    assert "going on from" in done.stdout and "step-000005" in done.stdout
    for folder in (tmp_path / "run/checkpoints").iterdir():
        (folder / "manifest.json").unlink()
    done = one("--out", str(tmp_path / "run"), "--resume")
    assert done.returncode == 1 and "no checkpoint in" in done.stdout and "Traceback" not in done.stdout


def test_a_folder_of_another_run_is_left_alone(data: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.yaml").write_text("seed: 1\n")
    done = one(*words(data, tmp_path / "run"))
    assert done.returncode == 2 and "belongs to another run" in done.stdout
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.yaml"]


def test_early_stopping_keeps_the_best_checkpoint(data: Path, tmp_path: Path) -> None:
    """A rate so high that the loss only rises after the first evaluation."""
    settings = [
        "--strategy",
        "full",
        "--optim",
        "sgd",
        "--optim.lr",
        "50",
        "--optim.clip",
        "0",
        "--schedule",
        "constant",
    ]
    stop = ["--eval.every", "1", "--eval.patience", "3", "--steps", "30", "--checkpoint.keep", "1"]
    done = one(*words(data, tmp_path / "run", *settings, *stop))
    assert done.returncode == 0, done.stdout
    losses = {row["step"]: row["loss"] for row in rows_of(tmp_path / "run") if "split" in row}
    best = min(losses, key=lambda step: losses[step])
    kept = {path.name for path in (tmp_path / "run/checkpoints").iterdir()}
    assert kept == {f"step-{best:06d}", f"step-{max(losses):06d}"}
    assert max(losses) == best + 3 < 30
    assert "stopped early" in done.stdout
