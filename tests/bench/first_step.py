"""The first step of a tiny model: `peftkit train --steps 1` against a plain transformers Trainer + PEFT script.

python tests/bench/first_step.py [TURNS]       prints both, and the ratio of their CPU seconds (promised: at most 0.7)

Both load the same tiny Llama and the same 64 rows, add LoRA of rank 8 to every linear layer, and take one step of
4 x 4 rows in fp32; nothing is cached between runs. What is compared is the process's CPU time when that step is done.
Beside it stand the whole commands: the script ends there, while peftkit goes on to save a checkpoint, export the adapter
and verify it in a process of its own.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests.bench.measure import in_turns, ratio, table  # noqa: E402

OURS, PLAIN = "peftkit train --steps 1", "Trainer + PEFT"


def main(turns: int) -> None:
    with tempfile.TemporaryDirectory(prefix="first-step-") as name:
        folder = Path(name)
        model, rows = make_model(folder / "model"), make_rows(folder / "rows.jsonl")
        plain = [sys.executable, str(Path(__file__).with_name("plain_step.py")), str(model), str(rows)]
        commands = {OURS: peftkit(model, rows, folder), PLAIN: [*plain, f"{folder}/plain-{{turn}}"]}
        marks = {OURS: f"{folder}/run-{{turn}}/metrics.jsonl", PLAIN: f"{folder}/plain-{{turn}}/trained"}
        costs = in_turns(commands, turns, folder, marks=marks)
    titles = {"reached": "CPU s to the step", "cpu": "CPU s, all", "wall": "wall s, all", "peak_mb": "peak MB"}
    print(table(costs, titles))
    print(f"CPU to the first step, ratio: {ratio(costs[OURS], costs[PLAIN], 'reached')} (promised: at most 0.7)")
    print(f"CPU of the whole commands, ratio: {ratio(costs[OURS], costs[PLAIN], 'cpu')}")


def peftkit(model: Path, rows: Path, folder: Path) -> list[str]:
    settings = {
        "model": model,
        "data.train": rows,
        "data.holdout": 0,
        "data.cache": folder / "cache-{turn}",
        "data.max_length": 128,
        "task": "causal_lm",
        "strategy": "lora",
        "strategy.rank": 8,
        "strategy.alpha": 16,
        "batch.total": 16,
        "batch.micro": 4,
        "steps": 1,
        "optim.lr": 2e-4,
        "schedule": "linear",
        "precision": "fp32",
        "out": folder / "run-{turn}",
    }
    words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    return [str(Path(sys.executable).with_name("peftkit")), "train", *words]


def make_model(folder: Path) -> Path:
    from tests.tiny import save_tiny

    return save_tiny(folder, "llama")


def make_rows(path: Path) -> Path:
    texts = [
        f"Row {number}: the sum of {number} and {number * 3} is {number * 4}. " * (1 + number % 3)
        for number in range(64)
    ]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else 5)
