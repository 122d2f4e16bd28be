"""Trainings of the same settings that are interrupted in one way or another, beside one that was not."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from tests.forked import Process, Server
from tests.tiny import save_tiny

STEPS = 9


@dataclass
class Runs:
    """Starts trainings of the same settings in folders of their own."""

    server: Server
    folder: Path

    def start(self, name: str, *more: str, processes: int = 2, **env: str) -> list[Process]:
        words = [
            "train",
            "--model",
            f"{self.folder}/llama",
            "--data",
            f"{self.folder}/chat.jsonl",
            "--data.holdout",
            "0.2",
        ]
        words += ["--out", f"{self.out(name)}", "--strategy", "full", "--batch.total", "8", "--batch.micro", "2"]
        words += [
            "--steps",
            f"{STEPS}",
            "--eval.every",
            "3",
            "--eval.batch",
            "2",
            "--checkpoint.every",
            "4",
            "--resume",
            *more,
        ]
        return self.server.start(words, self.folder / "logs", processes, **env)

    def out(self, name: str) -> Path:
        return self.folder / name

    def weights(self, name: str) -> dict[str, torch.Tensor]:
        newest = self.out(name) / f"checkpoints/step-{STEPS:06d}"
        return {key: value for part in newest.glob("trained-*") for key, value in load_file(part).items()}

    def rows(self, name: str) -> list[dict[str, Any]]:
        rows = [json.loads(line) for line in (self.out(name) / "metrics.jsonl").read_text().splitlines()]
        return [{**row, "seconds": 0, "memory": 0} for row in rows]

    def is_whole(self, name: str) -> bool:
        """Whether the run ended bit for bit as the one that was never interrupted, and told each step once."""
        expected, found = self.weights("whole"), self.weights(name)
        equal = expected.keys() == found.keys() and all(torch.equal(expected[key], found[key]) for key in expected)
        return equal and self.rows("whole") == self.rows(name)


def prepared(server: Server, folder: Path) -> Runs:
    """With the run that was not interrupted."""
    save_tiny(folder / "llama", "llama", attention_dropout=0.1)
    rows = [{"prompt": f"say {row}", "response": "word " * (1 + row % 5)} for row in range(60)]
    (folder / "chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    runs = Runs(server, folder)
    assert [one.wait() for one in runs.start("whole")] == [0, 0]
    return runs


def wait_for(file: Path, text: str, seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while not (file.exists() and text in file.read_text()):
        assert time.monotonic() < until, f"{file} has no {text}"
        time.sleep(0.01)
