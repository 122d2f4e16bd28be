"""What lies where in a run's folder: the one place that knows.

RUN/config.yaml                      the resolved run; Run -> YAML -> Run is the identity
RUN/splits.json                      which rows were held out of which files, by number and digest
RUN/metrics.jsonl                    a row per step and per evaluation
RUN/checkpoints/step-000100/         manifest.json, trained*.safetensors, optimizer*.safetensors, state.json, ...
RUN/saves.jsonl                      a row per checkpoint: its bytes, the seconds that training stood still, those of writing
RUN/status.json                      what the newest attempt is doing, or how it ended
RUN/stop                             asks a running training to save and end: `touch RUN/stop`
RUN/lock                             held by the training that writes here: its process and host
RUN/errors/attempt-0/process-1.json  why that process failed, a file for each that did
RUN/reference/train/                 numbers of the model before its first step, for tasks that learn against it
RUN/logs/process-0.log               what libraries said, a file per process
RUN/slurm/run.yaml, train.sbatch     what was submitted: the settings, and the script that SLURM runs
RUN/slurm/job.json                   the newest job: its number, cluster, token
RUN/slurm/then-1-eval.sbatch         the scripts of the commands that follow the run
RUN/slurm/job-123.log                what job 123 said, all attempts one after the other
RUN/slurm/attempts.jsonl             a row for every beginning and end of an attempt, and why it ended
RUN/slurm/preflight-0.json           what the nodes of attempt 0 found before it began
RUN/export/adapter/, export/merged/  deployable artifacts, each with its certificate.json
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from peftkit.errors import ConfigError

STEP = re.compile(r"step-(\d{6,})$")


@dataclass(frozen=True)
class RunFolder:
    """Paths below one run's folder. It creates nothing by itself."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def splits(self) -> Path:
        return self.path / "splits.json"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def saves(self) -> Path:
        return self.path / "saves.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def status(self) -> Path:
        return self.path / "status.json"

    @property
    def stop(self) -> Path:
        return self.path / "stop"

    @property
    def lock(self) -> Path:
        return self.path / "lock"

    def errors(self, attempt: int) -> Path:
        return self.path / "errors" / f"attempt-{attempt}"

    def error(self, attempt: int, process: int) -> Path:
        return self.errors(attempt) / f"process-{process}.json"

    @property
    def reference(self) -> Path:
        return self.path / "reference"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    def log(self, process: int) -> Path:
        return self.logs / f"process-{process}.log"

    @property
    def slurm(self) -> Path:
        return self.path / "slurm"

    @property
    def submitted(self) -> Path:
        return self.slurm / "run.yaml"

    @property
    def script(self) -> Path:
        return self.slurm / "train.sbatch"

    @property
    def job(self) -> Path:
        return self.slurm / "job.json"

    @property
    def attempts(self) -> Path:
        return self.slurm / "attempts.jsonl"

    def follower(self, number: str, command: str) -> Path:
        return self.slurm / f"then-{number}-{command.split()[0]}.sbatch"

    def job_log(self, job: str) -> Path:
        """`job` is its number, or `%j` for SLURM to fill in."""
        return self.slurm / f"job-{job}.log"

    def succeeded(self, job: str) -> Path:
        """Is there when the job of a command that follows the run has done its work."""
        return self.slurm / f"job-{job}.done"

    def preflight(self, attempt: int) -> Path:
        return self.slurm / f"preflight-{attempt}.json"

    def export(self, name: str) -> Path:
        return self.path / "export" / name

    def checkpoint(self, step: int) -> Path:
        return self.checkpoints / f"step-{step:06d}"

    def checkpoint_steps(self) -> list[int]:
        """Steps of the complete checkpoints, oldest first. What is still being written has another name and is not among them."""
        if not self.checkpoints.is_dir():
            return []
        matches = (STEP.match(entry.name) for entry in self.checkpoints.iterdir() if entry.is_dir())
        return sorted(int(match[1]) for match in matches if match)

    def newest_checkpoint(self) -> Path | None:
        steps = self.checkpoint_steps()
        return self.checkpoint(steps[-1]) if steps else None

    def check_links(self) -> None:
        """ConfigError if a link leads out of the folder: what is written, and what is deleted, would be elsewhere."""
        inside = self.path.resolve()
        for place, folders, files in os.walk(self.path):
            for name in (*folders, *files):
                path = Path(place, name)
                if path.is_symlink() and not path.resolve().is_relative_to(inside):
                    raise ConfigError(
                        f"{path} is a link to {path.resolve()}, outside of the run's folder, and would be written or deleted"
                        " there; put what it leads to in its place, or remove it"
                    )


def step_of(checkpoint: Path) -> int:
    """The step that a checkpoint's folder is named by."""
    return int(checkpoint.name.rpartition("-")[2])


def free_folder(wanted: Path) -> Path:
    """`wanted`, or the first of `wanted-2`, `wanted-3`, ... that does not exist yet."""
    candidate, number = wanted, 2
    while candidate.exists():
        candidate = wanted.with_name(f"{wanted.name}-{number}")
        number += 1
    return candidate
