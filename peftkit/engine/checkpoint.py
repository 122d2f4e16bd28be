"""Checkpoints: complete or absent, verified before they are used, and without a pickle in them.

RUN/checkpoints/step-000100/
    manifest.json                            format, step, base, processes, versions, sha256 of every other file
    progress.json                            how far the run is: step, evaluations, best
    trained-00001-of-00002.safetensors       fp32 weights of what the strategy trains, a file per process; BatchNorm's statistics
    optimizer-00001-of-00002.safetensors     their optimizer state, by parameter name; their running average
    process-00001-of-00002.safetensors       what is this process's own: random numbers, 8-bit block scales, counters
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from peftkit.engine.average import AVERAGE
from peftkit.engine.open import Engine
from peftkit.engine.random_state import random_state, set_random_state
from peftkit.engine.state import SEPARATOR, State, capture, restore
from peftkit.engine.statistics import share_statistics, statistics
from peftkit.engine.world import World
from peftkit.errors import CheckpointError
from peftkit.run_folder import RunFolder

FORMAT = 1
PARTIAL = ".partial"
KINDS = ("trained", "optimizer", "process")
"""What each process writes a file of."""


@dataclass
class Progress:
    """How far a run is. The position in the data follows from `step`."""

    step: int = 0
    evals: list[float] = field(default_factory=list)
    """Validation losses so far, in order."""
    best_step: int | None = None
    best: float | None = None
    waited: int = 0
    """Evaluations since the best one."""
    scored: int = 0
    """The step after which the splits were scored last."""
    tuned: dict[str, Any] = field(default_factory=dict)
    """Settings of the task that the newest validation set: its thresholds."""
    losses: list[float] = field(default_factory=list)
    """The last ones that were numbers: what is usual."""
    nonfinite: int = 0
    """Steps in a row, the last ones, whose loss or gradient was no number."""
    skipped: int = 0
    """All such steps."""


@dataclass(frozen=True)
class Saved:
    """A verified checkpoint."""

    folder: Path
    manifest: dict[str, Any]
    passed_over: list[str]
    """What is wrong with the newer ones, if there are any."""

    @property
    def progress(self) -> Progress:
        return read_progress(self.folder)


def save(engine: Engine, run: RunFolder, progress: Progress, world: World, base: Mapping[str, str]) -> Path:
    """Write the checkpoint of `progress.step`; every process takes part. `base` names the base model (source, fingerprint).

    Raises CheckpointError on every process if any of them fails; the folder of the step then does not exist.
    """
    final = run.checkpoint(progress.step)
    partial = final.with_name(final.name + PARTIAL)
    share_statistics(engine.model)
    state = capture(engine, lambda index: index % world.processes == world.process)
    problem = _attempt(lambda: _start(partial, world))
    world.wait()
    digests: dict[str, str] = {}
    problem = problem or _attempt(lambda: digests.update(_write_mine(partial, state, world)))
    everyones = world.gather((problem, digests, sorted(state.weights)))
    problem = (
        _attempt(lambda: _finish(partial, final, everyones, engine, progress, world, base)) if world.first else None
    )
    problem = world.share(problem)
    if problem:
        raise CheckpointError(f"the checkpoint of step {progress.step} could not be written: {problem}")
    return final


def newest(run: RunFolder, world: World) -> Saved | None:
    """The newest checkpoint that verifies, the same on every process; None if there is none at all.

    Raises CheckpointError if there are checkpoints and all are damaged: that is no fresh start.
    """
    found = world.share(_newest(run) if world.first else None)
    if isinstance(found, list):
        raise CheckpointError("\n".join([f"no checkpoint in {run.checkpoints} is good:", *found]))
    return found if found is None else Saved(*found)


def resume(engine: Engine, saved: Saved, world: World) -> None:
    """Put a checkpoint's optimizer state, fp32 weights and random numbers into an engine opened on its weights."""
    same_world = saved.manifest["processes"] == world.processes
    own = _read_file(saved.folder / _part("process", world.process if same_world else 0, saved.manifest["processes"]))
    local = {name: value for name, value in own.items() if name.startswith("local:")}
    if local and not (same_world and saved.manifest["zero"] == engine.zero):
        raise CheckpointError(
            f"{saved.folder}: its optimizer's state was cut for {saved.manifest['processes']} processes at ZeRO stage"
            f" {saved.manifest['zero']} and cannot be cut for {world.processes} at stage {engine.zero}; resume it on the same,"
            " or train with another --optim"
        )
    weights = read_trained(saved.folder)
    lacking = [name for name in engine.trained() if name not in weights]
    if lacking:
        raise CheckpointError(
            f"{saved.folder} does not hold {len(lacking)} weights that train here ({lacking[0]}): is it of another strategy?"
        )
    state = State(
        weights=weights,
        optimizer=_read_parts(saved.folder, "optimizer"),
        counters=_prefixed(own, "counter:"),
        local=_prefixed(local, "local:"),
        scaler=_prefixed(own, "scaler:"),
    )
    restore(engine, state)
    if same_world:
        set_random_state(_prefixed(own, "random:"))


def read_progress(folder: Path) -> Progress:
    """How far the run was when the checkpoint was written."""
    return Progress(**json.loads((folder / "progress.json").read_text()))


def read_trained(folder: Path) -> dict[str, Tensor]:
    """The fp32 weights in a checkpoint, by the adapted model's parameter names. Raises CheckpointError if it does not verify."""
    problems = verify(folder)
    if problems:
        raise CheckpointError("\n".join(problems))
    return _read_parts(folder, "trained")


def read_result(folders: Sequence[Path], averaged: bool = False) -> dict[str, Tensor]:
    """The weights that are scored and exported: the mean over the checkpoints, of their running averages if `averaged`.

    BatchNorm's counters, which are whole numbers, are the last checkpoint's. Raises CheckpointError if one does not verify,
    or if they do not hold the same weights.
    """
    read = [read_trained(folder) | (_read_averages(folder) if averaged else {}) for folder in folders]
    for folder, weights in zip(folders, read, strict=True):
        if weights.keys() != read[-1].keys():
            raise CheckpointError(f"{folder} holds other weights than {folders[-1]}: there is no mean of them")
    return {
        name: torch.stack([weights[name] for weights in read]).mean(0) if last.is_floating_point() else last
        for name, last in read[-1].items()
    }


def _read_averages(folder: Path) -> dict[str, Tensor]:
    ending = SEPARATOR + AVERAGE
    states = _read_parts(folder, "optimizer")
    return {name.removesuffix(ending): value for name, value in states.items() if name.endswith(ending)}


def verify(folder: Path) -> list[str]:
    """What is wrong with a checkpoint, a sentence each; nothing if it is good."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        files, processes = dict(manifest["files"]), range(manifest["processes"])
    except (OSError, ValueError, KeyError, TypeError) as problem:
        return [f"{folder}: its manifest.json cannot be read: {problem}"]
    if manifest.get("format") != FORMAT:
        return [f"{folder}: format {manifest.get('format')}, and this peftkit reads {FORMAT}"]
    parts = [_part(kind, index, len(processes)) for kind in KINDS for index in processes]
    unlisted = [name for name in ["progress.json", *parts] if name not in files]
    problems = [f"{folder}: its manifest.json does not list {name}" for name in unlisted]
    for name, digest in files.items():
        path = folder / name
        if Path(name).name != name:
            problems.append(f"{folder}: its manifest.json lists {name}, which is no file of this folder")
        elif not path.is_file():
            problems.append(f"{folder}: {name} is missing")
        elif sha256(path) != digest:
            problems.append(f"{folder}: {name} is damaged (its sha256 is not the manifest's)")
    return problems


def prune(run: RunFolder, keep: int, best_step: int | None) -> None:
    """Leave the newest `keep` checkpoints (0: all) and the best one."""
    steps = run.checkpoint_steps()
    for step in steps[:-keep] if keep else []:
        if step != best_step:
            doomed = run.checkpoint(step)
            doomed.rename(doomed.with_name(doomed.name + PARTIAL))  # half-deleted must not look like a checkpoint
            shutil.rmtree(doomed.with_name(doomed.name + PARTIAL))


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _newest(run: RunFolder) -> tuple[Path, dict[str, Any], list[str]] | list[str] | None:
    damaged: list[str] = []
    for step in reversed(run.checkpoint_steps()):
        folder = run.checkpoint(step)
        problems = verify(folder)
        if not problems:
            return folder, json.loads((folder / "manifest.json").read_text(encoding="utf-8")), damaged
        damaged += problems
    return damaged or None


def _attempt(action: Any) -> str | None:
    """What went wrong, in a sentence: an error on one process must reach the others as a value, or they wait for ever."""
    try:
        action()
    except (OSError, SafetensorError, CheckpointError) as problem:
        return f"{problem}"
    return None


def _start(partial: Path, world: World) -> None:
    if world.first:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)


def _write_mine(partial: Path, state: State, world: World) -> dict[str, str]:
    own = {f"random:{name}": value for name, value in random_state().items()}
    own |= {f"counter:{name}": value for name, value in state.counters.items()}
    own |= {f"local:{name}": value for name, value in state.local.items()}
    own |= {f"scaler:{name}": value for name, value in state.scaler.items()}
    digests = {}
    for kind, tensors in zip(KINDS, (state.weights, state.optimizer, own), strict=True):
        path = partial / _part(kind, world.process, world.processes)
        save_file(tensors, path)
        synchronise(path)
        digests[path.name] = sha256(path)
    return digests


def _finish(
    partial: Path,
    final: Path,
    everyones: list[tuple[str | None, dict[str, str], list[str]]],
    engine: Engine,
    progress: Progress,
    world: World,
    base: Mapping[str, str],
) -> None:
    """On the first process: audit what all have written, add the manifest, and rename it into place."""
    try:
        for problem, _, _ in everyones:
            if problem:
                raise CheckpointError(problem)
        _audit(partial, everyones, engine)
        files = {name: digest for _, digests, _ in everyones for name, digest in digests.items()}
        progress_file = partial / "progress.json"
        progress_file.write_text(json.dumps(asdict(progress), indent=1))
        synchronise(progress_file)
        files[progress_file.name] = sha256(progress_file)
        _write_manifest(partial / "manifest.json", files, engine, progress, world, base)
        shutil.rmtree(final, ignore_errors=True)  # of an attempt that had reached this step before
        partial.rename(final)
        synchronise(final.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _audit(partial: Path, everyones: list[tuple[str | None, dict[str, str], list[str]]], engine: Engine) -> None:
    """Every trained parameter is there, whole: an adapter saved under ZeRO-3 must not be a file of empty tensors."""
    written = {name for _, _, names in everyones for name in names}
    expected = engine.trained() | statistics(engine.model)
    missing = sorted(set(expected) - written)
    shapes = {name: tuple(getattr(weight, "ds_shape", weight.shape)) for name, weight in expected.items()}
    wrong = [name for name, value in _read_parts(partial, "trained").items() if tuple(value.shape) != shapes[name]]
    if missing or wrong:
        raise CheckpointError(f"missing: {missing[:5]}; of a wrong shape: {wrong[:5]}")


def _write_manifest(
    path: Path, files: Mapping[str, str], engine: Engine, progress: Progress, world: World, base: Mapping[str, str]
) -> None:
    manifest = {
        "format": FORMAT,
        "step": progress.step,
        "base": dict(base),
        "processes": world.processes,
        "zero": engine.zero,
        "versions": {name: version(name) for name in ("peftkit", "torch", "transformers", "deepspeed", "peft")},
        "files": dict(files),
    }
    path.write_text(json.dumps(manifest, indent=1))
    synchronise(path)


def synchronise(path: Path) -> None:
    """Wait until a file's bytes, or a folder's names, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _part(kind: str, index: int, count: int) -> str:
    return f"{kind}-{index + 1:05d}-of-{count:05d}.safetensors"


def _read_parts(folder: Path, kind: str) -> dict[str, Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob(f"{kind}-*.safetensors")):
        tensors.update(_read_file(path))
    return tensors


def _read_file(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except SafetensorError as problem:  # listed with the right sha256, but never written by us
        raise CheckpointError(f"{path} is no file of safetensors ({problem})") from None


def _prefixed(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
