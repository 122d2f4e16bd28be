"""Where someone sits who submits to the tests' SLURM: a tiny model, rows, and settings that a processor alone can bear."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

from tests.launch import ROOT
from tests.slurm.cluster import Cluster
from tests.tiny import save_tiny

SMALL = (
    "--strategy=full", "--batch.total=4", "--steps=4", "--checkpoint.every=2", "--no-eval.before", "--data.holdout=0",
    "--gpus-per-node=0", "--cpus-per-task=1", "--time=20m", "--signal-seconds=60", "--no-preflight",
)  # fmt: skip


@dataclass
class Desk:
    """`folder` is what the nodes share."""

    cluster: Cluster
    folder: Path
    environment: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        save_tiny(self.folder / "llama", "llama")
        rows = [{"prompt": f"say {row}", "response": "word " * (1 + row % 5)} for row in range(12)]
        (self.folder / "chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        cache = {"PEFTKIT_CACHE": str(self.folder / "cache"), "HF_HUB_OFFLINE": "1"}
        self.environment = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **cache}

    def peftkit(self, *words: object, code: int = 0) -> str:
        """A command where the controller runs; what it said."""
        command = [sys.executable, "-m", "peftkit", *map(str, words)]
        done = self.cluster.run(*command, PEFTKIT_SITE="", **self.environment)
        assert done.returncode == code, done.stdout
        return done.stdout

    def submit(self, out: str, *words: object, code: int = 0) -> str:
        own = [f"--model={self.folder}/llama", f"--data={self.folder}/chat.jsonl", f"--out={self.folder / out}"]
        return self.peftkit("submit", *own, *SMALL, f"--environment={json.dumps(self.environment)}", *words, code=code)

    def logs(self, out: str) -> str:
        """The ends of all jobs' logs."""
        files = sorted((self.folder / out).rglob("job-*.log"), key=os.path.getmtime)
        return "\n".join(f"== {file}\n{file.read_text()[-3000:]}" for file in files)
