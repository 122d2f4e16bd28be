"""Fine-tune any transformers model with the method that fits the hardware, on DeepSpeed, and get back a deployable model.

>>> import peftkit
>>> run = peftkit.Run(model="gpt2", task="causal_lm", strategy={"name": "lora", "rank": 8}, data="texts.jsonl")
>>> folder = peftkit.train(run)  # doctest: +SKIP
>>> peftkit.export(folder, to="merged")  # doctest: +SKIP
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from peftkit.errors import CheckpointError, ConfigError, DataError, ExportError, ModelError, PeftkitError

if TYPE_CHECKING:
    from peftkit.config.run import Run
    from peftkit.engine.optim import Optimizer
    from peftkit.engine.schedule import Schedule
    from peftkit.exporters import Exporter
    from peftkit.metrics import Metric
    from peftkit.strategies import Strategy
    from peftkit.tasks import Task

__version__ = "0.1.0"
__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataError",
    "ExportError",
    "Exporter",
    "Metric",
    "ModelError",
    "Optimizer",
    "PeftkitError",
    "Run",
    "Schedule",
    "Strategy",
    "Task",
    "export",
    "train",
]

_HOMES = {
    "Exporter": "peftkit.exporters",
    "Metric": "peftkit.metrics",
    "Optimizer": "peftkit.engine.optim",
    "Run": "peftkit.config.run",
    "Schedule": "peftkit.engine.schedule",
    "Strategy": "peftkit.strategies",
    "Task": "peftkit.tasks",
}


def train(run: Run) -> Path:
    """Train as `run` says, in this process or in every process of a launcher's world; returns the run folder.

    Raises ConfigError, DataError or ModelError before the first step, CheckpointError or ExportError after it.
    """
    from peftkit.flows.train import train as flow

    return flow(run)


def export(run_folder: Path | str, to: str | Exporter = "merged", checkpoint: str | None = None) -> Path:
    """Write a trained model as `to` (`adapter`, `merged`), verify it in a fresh process, and return its folder.

    `checkpoint` is one of RUN/checkpoints by name; left out, the run's final one. Raises ExportError if the export is
    not what was trained; nothing is left in its place then.
    """
    from peftkit.flows.export import export as flow

    return flow(Path(run_folder), to, checkpoint)


def __getattr__(name: str) -> object:
    """The choices' families are imported when they are asked for: `import peftkit` itself takes no time."""
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'peftkit' has no attribute {name!r}")
