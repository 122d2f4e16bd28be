"""200 answers written, and 200 rows scored: `peftkit predict` and `peftkit eval` against a plain transformers loop.

python tests/bench/answers.py [TURNS [ROWS]]         prints CPU seconds of the whole commands, and the ratios

The model is W1's after one step, merged; all write 64 tokens greedily in batches of 8, and score in batches of 8.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests.bench.measure import in_turns, ratio, table  # noqa: E402

OURS = "peftkit predict", "peftkit eval"
PLAIN = "plain generate", "plain loss"


def main(turns: int = 3, count: int = 200) -> None:
    with TemporaryDirectory(prefix="answers-") as name:
        folder = Path(name)
        model, rows = made(folder, count)
        own = [sys.executable, "-m", "peftkit"]
        plain = [sys.executable, str(Path(__file__).with_name("plain_answers.py"))]
        commands = {
            OURS[0]: [*own, "predict", model, rows, "--out", f"{folder}/ours-{{turn}}.jsonl", "--max-new-tokens", "64"],
            PLAIN[0]: [*plain, "generate", model, rows, f"{folder}/plain-{{turn}}.jsonl"],
            OURS[1]: [*own, "eval", model, rows],
            PLAIN[1]: [*plain, "loss", model, rows, f"{folder}/loss-{{turn}}.json"],
        }
        costs = in_turns(commands, turns, folder)
        same = alike(folder / "ours-0.jsonl", folder / "plain-0.jsonl")
    print(table(costs, {"cpu": "CPU seconds, all", "peak_mb": "peak MB"}))
    for first, second in zip(OURS, PLAIN, strict=True):
        print(f"CPU, {first} in parts of {second}: {ratio(costs[first], costs[second], 'cpu')}")
    print(f"{same} of {count} answers are the same")


def made(folder: Path, count: int) -> tuple[str, str]:
    """A run of one step, its merged export, and the rows."""
    from tests.bench.workloads import CACHE, WORKLOADS, place

    where = place(WORKLOADS["W1"], count, 42)
    run = folder / "run"
    settings = {"model": where.model, "data.train": where.rows, "data.holdout": 0, "steps": 1, "out": run}
    settings |= {"data.cache": CACHE / "peftkit", "batch.micro": 1}
    words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    for command in (["train", *words], ["export", str(run), "--to", "merged"]):
        subprocess.run([sys.executable, "-m", "peftkit", *command], check=True, stdout=subprocess.DEVNULL)
    return str(run / "export/merged"), str(where.rows)


def alike(ours: Path, plain: Path) -> int:
    """Answers that both wrote."""
    read = [[json.loads(line)["generated"].strip() for line in file.read_text().splitlines()] for file in (ours, plain)]
    return sum(a == b for a, b in zip(*read, strict=True))


if __name__ == "__main__":
    os.environ |= {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    main(*map(int, sys.argv[1:]))
