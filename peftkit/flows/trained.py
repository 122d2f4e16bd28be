"""A trained model as it lies on a disk, ready to answer: a run's folder, one of its checkpoints, or an export."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from peftkit.config.sections import Data, Generate, Model
from peftkit.engine.checkpoint import read_progress, read_result
from peftkit.errors import ConfigError, ModelError
from peftkit.exporters.base import Reading
from peftkit.exporters.manual import MANUAL, READ_AS, Manual
from peftkit.flows.export import dtype_of, find_checkpoints, put_trained, read_run
from peftkit.flows.job import check_base
from peftkit.models.code import why_unread
from peftkit.models.configure import configure, context_limit
from peftkit.models.load import load
from peftkit.models.processor import load_processor
from peftkit.run_folder import STEP, RunFolder
from peftkit.strategies import Strategy
from peftkit.tasks import Task


@dataclass(frozen=True)
class Trained:
    """A model that answers."""

    place: Path
    model: Any
    """A transformers or PEFT model, in evaluation mode."""
    processor: Any
    task: Task
    """With its labels and thresholds."""
    data: Data
    """How rows are read, and no source."""
    context: int | None
    """The longest row that the model takes."""
    generate: Generate
    """How it writes texts."""
    start: Callable[[], Any]
    """Loads the model as it was before its first step, for tasks that measure against it."""
    seed: int = 0


def open_trained(place: Path, checkpoint: str | None = None, trust: bool = False) -> Trained:
    """Open what lies at `place`. ConfigError if that is none of the three; ModelError if it cannot be opened.

    `checkpoint` chooses among a run's: `last`, `best`, `average`, or a step. `trust` allows Python code that comes with the
    model, which no file in a folder can allow.
    """
    place = place.expanduser()
    if STEP.match(place.name) and (place / "manifest.json").is_file():
        return from_run(place.parent.parent, place.name, trust)
    if (place / "config.yaml").is_file():
        return from_run(place, checkpoint, trust)
    if (place / MANUAL).is_file():
        return from_export(place, trust)
    what = (
        "there is nothing" if not place.exists() else "that is neither a run's folder, nor a checkpoint, nor an export"
    )
    raise ConfigError(f"{place}: {what}; name RUN, RUN/checkpoints/step-000100 or RUN/export/NAME")


def from_run(place: Path, checkpoint: str | None, trust: bool = False) -> Trained:
    run = read_run(place / "config.yaml", trust)
    taken = find_checkpoints(RunFolder(place), checkpoint or run.checkpoint.final, run.checkpoint.average)
    weights = read_result(taken, averaged=run.regularize.ema is not None)  # first of all: it says what is damaged
    task = run.task.model_copy(update=dict(read_progress(taken[-1]).tuned))
    base = load(run.model, task, run.strategy, dtype_of(run), run.seed, run.data.cache)
    check_base(taken[-1], base)
    model = run.strategy.adapt(base.model, base.fresh)
    put_trained(model, weights)
    return Trained(
        place,
        model.eval(),
        base.processor,
        task,
        reading_of(run.data),
        context_limit(base.model.config),
        run.generate,
        lambda: load(run.model, task, run.strategy, dtype_of(run), run.seed, run.data.cache).model.eval(),
        run.seed,
    )


def from_export(folder: Path, trust: bool = False, base: str | None = None) -> Trained:
    """`base` is where an adapter's base lies now, if not where it lay."""
    manual = manual_of(folder, trust)
    if base is not None:
        manual = replace(manual, reading=replace(manual.reading, base=base))
    try:
        model = manual.exporter.open(folder, manual.reading)
    except (OSError, ValueError, RuntimeError, SafetensorError) as problem:
        raise ModelError(f"{folder} cannot be opened: {why(problem, folder, manual.reading)}") from problem
    return described(folder, manual, model)


def described(folder: Path, manual: Manual, model: Any) -> Trained:
    """What the export's folder says of a model that is open."""
    task = manual.task
    settings = Model(path=str(folder), trust_remote_code=manual.reading.trust_remote_code)
    processor = load_processor(settings, str(folder), task.reads)
    source = str(folder) if (folder / "config.json").is_file() else manual.reading.base
    return Trained(
        folder,
        model.eval(),
        processor,
        task,
        Data.model_validate(manual.data),
        context_limit(configure(settings, task, source)),
        Generate.model_validate(manual.generate),
        partial(base_of, manual.reading, task),
    )


def manual_of(folder: Path, trust: bool = False) -> Manual:
    """What the export says of itself. ModelError if files of it are missing, or that cannot be read."""
    try:
        manual = Manual.read(folder, trust)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as problem:
        raise ModelError(f"{folder / MANUAL} cannot be read ({problem}); export the run again") from problem
    missing = [name for name in manual.files if not (folder / name).exists()]
    if missing:
        raise ModelError(f"{folder} lacks {', '.join(missing)}, which it was exported with; copy the whole folder")
    return manual


def why(problem: Exception, folder: Path, reading: Reading) -> str:
    """The base of an adapter that has gone, weights that were cut short, or else what the library says."""
    if (
        reading.base.startswith(("/", "."))
        and not Path(reading.base).exists()
        and not (folder / "config.json").is_file()
    ):
        return (
            f"its base model {reading.base} is not there; put it back, or export the run --to merged, which needs none"
        )
    if isinstance(problem, SafetensorError):
        return f"its weights are damaged ({problem}); copy or export it again"
    return why_unread(problem, str(folder) if (folder / "config.json").is_file() else reading.base)


def base_of(reading: Reading, task: Task) -> Any:
    """What an export's model was before it was trained."""
    settings = Model(path=reading.base, revision=reading.revision, trust_remote_code=reading.trust_remote_code)
    strategy: Strategy = Strategy.model_validate(reading.strategy)
    return load(settings, task, strategy, getattr(torch, reading.dtype), seed=0).model.eval()


def reading_of(data: Data) -> Data:
    """How rows are read, and nothing of which."""
    return Data.model_validate(data.model_dump(include={*READ_AS, "cache"}))


def placed(model: Any, device: torch.device) -> Any:
    """The model on the device; one in 4 bits is there already."""
    return model if getattr(model, "is_quantized", False) else model.to(device)


def with_columns(trained: Trained, columns: Mapping[str, str]) -> Trained:
    """The same, reading a file whose columns have other names."""
    return replace(trained, data=trained.data.model_copy(update={"columns": {**trained.data.columns, **columns}}))
