"""Checkpoints: complete or absent, verified before they are used, and without a pickle in them.

RUN/checkpoints/step-000100/
    manifest.json                            format, step, base, run, processes, versions, sha256 of every other file
    progress.json                            how far the run is: step, evaluations, best
    trained-00001-of-00002.safetensors       fp32 weights of what the strategy trains, a file per process; BatchNorm's statistics
    optimizer-00001-of-00002.safetensors     their optimizer state, by parameter name; their running average
    process-00001-of-00002.safetensors       what is this process's own: random numbers, 8-bit block scales, counters
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from peftkit.atomic import OLD, put_in_place, recover, remove, synchronise
from peftkit.engine.average import AVERAGE
from peftkit.engine.identity import Identity, difference
from peftkit.engine.open import Engine
from peftkit.engine.random_state import random_state, seed_again, set_random_state
from peftkit.engine.state import SEPARATOR, State, capture, restore
from peftkit.engine.statistics import share_statistics, statistics
from peftkit.engine.world import World
from peftkit.errors import CheckpointError
from peftkit.run_folder import RunFolder

FORMAT = 2
PARTIAL = ".partial"
TO_GO_ON = ("step", "zero", "run")
"""What a manifest must say of a checkpoint that is gone on from."""
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

    @property
    def trained(self) -> Mapping[str, Tensor]:
        """The fp32 weights, by the adapted model's parameter names, each read when it is asked for."""
        return Parts(self.folder, "trained")


class Parts(Mapping[str, Tensor]):
    """The tensors of all processes' files of a kind, each read when it is asked for: a process may need a few of many."""

    def __init__(self, folder: Path, kind: str) -> None:
        self._places: dict[str, Any] = {}
        for path in sorted(folder.glob(f"{kind}-*.safetensors")):
            file = _opened(path)
            self._places |= dict.fromkeys(file.keys(), file)

    def __getitem__(self, name: str) -> Tensor:
        value: Tensor = self._places[name].get_tensor(name)
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._places[name].get_slice(name).get_shape())


@dataclass(frozen=True)
class Snapshot:
    """What one process will write, in memory of its own: the engine may go on meanwhile."""

    state: State
    random: dict[str, Tensor]
    progress: Progress
    zero: int
    shapes: dict[str, tuple[int, ...]]
    """Of everything that all processes together have to write."""


def snapshot(engine: Engine, progress: Progress, world: World) -> Snapshot:
    """The engine as it stands; a collective."""
    share_statistics(engine.model)
    state = capture(engine, lambda index: index % world.processes == world.process)
    expected = engine.trained() | statistics(engine.model)
    shapes = {name: tuple(getattr(weight, "ds_shape", weight.shape)) for name, weight in expected.items()}
    return Snapshot(state, random_state(), deepcopy(progress), engine.zero, shapes)


def begin(partial: Path) -> None:
    """An empty folder to write into, on the first process."""
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)


def write_part(partial: Path, taken: Snapshot, world: World) -> dict[str, str]:
    """Write this process's files; their digests, by name."""
    state = taken.state
    own = {f"random:{name}": value for name, value in taken.random.items()}
    own |= {f"counter:{name}": value for name, value in state.counters.items()}
    own |= {f"local:{name}": value for name, value in state.local.items()}
    own |= {f"scaler:{name}": value for name, value in state.scaler.items()}
    digests = {}
    for kind, tensors in zip(KINDS, (state.weights, state.optimizer, own), strict=True):
        path = partial / _part(kind, world.process, world.processes)
        save_file(dict(tensors), path)
        synchronise(path)
        digests[path.name] = sha256(path)
    return digests


def complete(
    partial: Path,
    final: Path,
    digests: Mapping[str, str],
    taken: Snapshot,
    world: World,
    base: Mapping[str, str],
    run: Identity | None = None,
) -> None:
    """On the first process: audit what all have written, add the manifest, and rename the folder into place."""
    _audit(partial, taken.shapes)
    progress_file = partial / "progress.json"
    progress_file.write_text(json.dumps(asdict(taken.progress), indent=1))
    synchronise(progress_file)
    manifest = {
        "format": FORMAT,
        "step": taken.progress.step,
        "base": dict(base),
        "run": run.plain() if run else None,
        "processes": world.processes,
        "zero": taken.zero,
        "versions": {name: version(name) for name in ("peftkit", "torch", "transformers", "deepspeed", "peft")},
        "files": {**digests, progress_file.name: sha256(progress_file)},
    }
    (partial / "manifest.json").write_text(json.dumps(manifest, indent=1))
    synchronise(partial / "manifest.json")
    synchronise(partial)
    put_in_place(partial, final)  # there may be one of an attempt that had reached this step before


def newest(run: RunFolder, world: World, mine: Identity | None = None) -> Saved | None:
    """The newest checkpoint that verifies and is this run's, the same on every process; None if there is none at all.

    Raises CheckpointError if there are checkpoints and all are damaged or of another run: that is no fresh start.
    """
    found = world.share(_newest(run, mine) if world.first else None)
    if isinstance(found, list):
        raise CheckpointError("\n".join([f"no checkpoint in {run.checkpoints} is good:", *found]))
    return found if found is None else Saved(*found)


def resume(engine: Engine, saved: Saved, world: World, seed: int = 0) -> None:
    """Put a checkpoint's optimizer state, fp32 weights and random numbers into an engine opened on its weights.

    On another number of processes there are no such random numbers: new ones are drawn, of `seed` and the step.
    """
    same_world = saved.manifest["processes"] == world.processes
    own = _read_file(saved.folder / _part("process", world.process if same_world else 0, saved.manifest["processes"]))
    local = {name: value for name, value in own.items() if name.startswith("local:")}
    if local and not (same_world and saved.manifest["zero"] == engine.zero):
        raise CheckpointError(
            f"{saved.folder}: its optimizer's state was cut for {saved.manifest['processes']} processes at ZeRO stage"
            f" {saved.manifest['zero']} and cannot be cut for {world.processes} at stage {engine.zero}; resume it on the same,"
            " or train with another --optim"
        )
    weights = saved.trained
    lacking = [name for name in engine.trained() if name not in weights]
    if lacking:
        raise CheckpointError(
            f"{saved.folder} does not hold {len(lacking)} weights that train here ({lacking[0]}): is it of another strategy?"
        )
    state = State(
        weights=weights,
        optimizer=Parts(saved.folder, "optimizer"),
        counters=_prefixed(own, "counter:"),
        local=_prefixed(local, "local:"),
        scaler=_prefixed(own, "scaler:"),
    )
    restore(engine, state)
    if same_world:
        set_random_state(_prefixed(own, "random:"))
    else:
        seed_again(seed, saved.manifest["step"], world.process)


def read_progress(folder: Path) -> Progress:
    """How far the run was when the checkpoint was written."""
    return Progress(**json.loads((folder / "progress.json").read_text()))


def read_trained(folder: Path) -> dict[str, Tensor]:
    """The fp32 weights in a checkpoint, by the adapted model's parameter names. Raises CheckpointError if it does not verify."""
    problems = verify(folder)
    if problems:
        raise CheckpointError("\n".join(problems))
    return dict(Parts(folder, "trained"))


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
    states = Parts(folder, "optimizer")
    return {name.removesuffix(ending): states[name] for name in states if name.endswith(ending)}


def verify(folder: Path) -> list[str]:
    """What is wrong with a checkpoint, a sentence each; nothing if it is good."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        if manifest.get("format", FORMAT) != FORMAT:
            return [f"{folder}: format {manifest.get('format')}, and this peftkit reads {FORMAT}"]
        files, processes = dict(manifest["files"]), range(manifest["processes"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as problem:
        return [f"{folder}: its manifest.json cannot be read: {problem}"]
    parts = [_part(kind, index, len(processes)) for kind in KINDS for index in processes]
    unlisted = [name for name in ["progress.json", *parts] if name not in files]
    problems = [f"{folder}: its manifest.json does not list {name}" for name in unlisted]
    for name, digest in files.items():
        path = folder / name
        if Path(name).name != name:
            problems.append(f"{folder}: its manifest.json lists {name}, which is no file of this folder")
        elif not path.is_file():
            problems.append(f"{folder}: {name} is missing")
        elif told := _damage(path, digest):
            problems.append(f"{folder}: {name} {told}")
    return problems


def _damage(path: Path, digest: str) -> str:
    try:
        return "" if sha256(path) == digest else "is damaged (its sha256 is not the manifest's)"
    except OSError as problem:
        return f"cannot be read ({problem.strerror or problem})"


def prune(run: RunFolder, keep: int, best_step: int | None) -> None:
    """Leave the newest `keep` checkpoints (0: all) and the best one."""
    steps = run.checkpoint_steps()
    for step in steps[:-keep] if keep else []:
        if step != best_step:
            remove(run.checkpoint(step), PARTIAL)


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _newest(run: RunFolder, mine: Identity | None) -> tuple[Path, dict[str, Any], list[str]] | list[str] | None:
    passed_over: list[str] = []
    for old in run.checkpoints.glob(f"*{OLD}"):
        recover(old.with_suffix(""))
    for step in reversed(run.checkpoint_steps()):
        folder = run.checkpoint(step)
        problems = verify(folder)
        manifest = {} if problems else json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        if lacking := [] if problems else [key for key in TO_GO_ON if key not in manifest]:
            problems = [f"{folder}: its manifest.json does not say {', '.join(lacking)}"]
        if not problems and mine and (other := difference(manifest["run"], mine)):
            problems = [f"{folder} is of another run: {other}"]
        if not problems:
            return folder, manifest, passed_over
        passed_over += problems
    return passed_over or None


def attempt(action: Callable[[], object]) -> str | None:
    """What went wrong, in a sentence: an error on one process must reach the others as a value, or they wait for ever."""
    try:
        action()
    except (OSError, SafetensorError, CheckpointError) as problem:
        return f"{problem}"
    return None


def _audit(partial: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Every trained parameter is there, whole: an adapter saved under ZeRO-3 must not be a file of empty tensors."""
    written = Parts(partial, "trained")
    missing = sorted(shapes.keys() - written.keys())
    wrong = [name for name in written if written.shape(name) != shapes.get(name)]
    if missing or wrong:
        raise CheckpointError(f"missing: {missing[:5]}; of a wrong shape: {wrong[:5]}")


def _part(kind: str, index: int, count: int) -> str:
    return f"{kind}-{index + 1:05d}-of-{count:05d}.safetensors"


def _read_file(path: Path) -> dict[str, Tensor]:
    with _opened(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except SafetensorError as problem:  # listed with the right sha256, but never written by us
        raise CheckpointError(f"{path} is no file of safetensors ({problem})") from None


def _prefixed(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
