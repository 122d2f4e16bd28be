"""A checkpoint is complete or absent, whatever happens while it is written, and fits any world and ZeRO stage."""

from __future__ import annotations

import errno
import json
import shutil
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from peftkit.engine import checkpoint
from peftkit.engine.checkpoint import Progress, Saved, newest, prune, read_trained, resume, verify
from peftkit.engine.open import Engine
from peftkit.engine.saver import save
from peftkit.engine.state import capture, load_weights
from peftkit.engine.world import World
from peftkit.errors import CheckpointError
from peftkit.run_folder import RunFolder
from tests.conftest import Together
from tests.engine.odd import Odd, furthest, opened, optimizer, train
from tests.launch import run

BASE = {"source": "here", "fingerprint": "abc"}
STAGES = ("zero0", "zero1", "zero2", "zero3")


def three_steps(folder: Path, world: World, zero: str, optim: str = "adamw") -> Engine:
    """An engine after three steps, their checkpoint in `folder`."""
    wide = optim != "adamw"
    engine = opened(Odd(wide), zero, world, optimizer(optim, lr=1e-3 if wide else 1e-2))
    train(engine, range(3), world)
    save(engine, RunFolder(folder), Progress(step=3, evals=[2.0, 1.0], best_step=2, best=1.0, waited=1), world, BASE)
    return engine


def resumed(folder: Path, world: World, zero: str, optim: str = "adamw") -> Engine:
    saved = newest(RunFolder(folder), world)
    assert saved and saved.progress == Progress(step=3, evals=[2.0, 1.0], best_step=2, best=1.0, waited=1)
    wide = optim != "adamw"
    model = Odd(wide, seed=5)
    load_weights(model, read_trained(saved.folder))
    engine = opened(model, zero, world, optimizer(optim, lr=1e-3 if wide else 1e-2))
    resume(engine, saved, world)
    return engine


def resumed_bit_for_bit(world: World, folder: Path, zero: str, optim: str = "adamw") -> None:
    """Weights, optimizer state and the random numbers that each process draws, two steps later."""
    torch.manual_seed(world.process)
    engine = three_steps(folder, world, zero, optim)
    drawn = torch.rand(4)
    train(engine, [3, 4], world)
    expected = capture(engine)
    engine.close()
    again = resumed(folder, world, zero, optim)
    assert torch.equal(torch.rand(4), drawn)
    train(again, [3, 4], world)
    found = capture(again)
    again.close()
    for kind in ("weights", "optimizer", "counters", "local"):
        assert furthest(getattr(found, kind), getattr(expected, kind)) == 0, kind


def saved_for_others(world: World, folder: Path, zero: str) -> None:
    """A checkpoint, and what two more steps make of it; the same file resumes at the other stages here, and alone below."""
    engine = three_steps(folder, world, zero)
    train(engine, [3, 4], world)
    expected = capture(engine)
    engine.close()
    if world.first:
        save_file({**expected.weights, **expected.optimizer}, folder / "expected.safetensors")
    for other in ("zero0", "zero2", "zero3"):
        again = resumed(folder, world, other)
        train(again, [3, 4], world)
        found = capture(again)
        again.close()
        assert furthest({**found.weights, **found.optimizer}, {**expected.weights, **expected.optimizer}) < 1e-6, other


def eight_bits_stay_where_they_were_cut(world: World, folder: Path) -> None:
    three_steps(folder, world, "zero2", "adamw_8bit").close()
    with pytest.raises(CheckpointError, match="cut for 2 processes at ZeRO stage 2 and cannot be cut for 2 at stage 3"):
        resumed(folder, world, "zero3", "adamw_8bit")


def disk_full_on(world: World, folder: Path, process: int, patch: Callable[..., Any]) -> None:
    """All processes raise, the step's folder does not exist, the one before is whole, and the next save works."""
    run_folder = RunFolder(folder)
    engine = three_steps(folder, world, "zero2")
    real = checkpoint.save_file
    if world.process == process:
        checkpoint.save_file = partial(patch, real)  # type: ignore[assignment]
    try:
        with pytest.raises(CheckpointError, match=r"the checkpoint of step 4 could not be written: .*No space left"):
            save(engine, run_folder, Progress(step=4), world, BASE)
    finally:
        checkpoint.save_file = real
    world.wait()
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step-000003"]
    assert verify(run_folder.checkpoint(3)) == []
    world.wait()
    assert verify(save(engine, run_folder, Progress(step=4), world, BASE)) == []
    engine.close()


def no_space(real: Callable[..., Any], tensors: Any, path: Path) -> None:
    if path.name.startswith("optimizer"):
        path.write_bytes(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")
    real(tensors, path)


def nowhere_to_write(world: World, folder: Path) -> None:
    engine = opened(Odd(), "zero2", world)
    if world.first:
        (folder / "checkpoints").write_text("a file where the folder should be")
    world.wait()
    with pytest.raises(CheckpointError, match="the checkpoint of step 1 could not be written"):
        save(engine, RunFolder(folder), Progress(step=1), world, BASE)
    engine.close()


def empty_tensors_are_not_saved(world: World, folder: Path) -> None:
    """The audit: what a careless save of ZeRO-3 writes has the right names and nothing in it."""
    engine = opened(Odd(), "zero3", world)
    train(engine, [0], world)
    real = checkpoint.save_file

    def careless(tensors: Any, path: Path) -> None:
        emptied = {name: torch.empty(0) for name in tensors}
        real(emptied if path.name.startswith("trained") else tensors, path)

    checkpoint.save_file = careless  # type: ignore[assignment]
    try:
        with pytest.raises(CheckpointError, match=r"of a wrong shape: \['"):
            save(engine, RunFolder(folder), Progress(step=1), world, BASE)
    finally:
        checkpoint.save_file = real
    world.wait()
    assert not list((folder / "checkpoints").iterdir())
    engine.close()


CHECKS: dict[str, Any] = {f"bit-for-bit-{zero}": partial(resumed_bit_for_bit, zero=zero) for zero in STAGES}
CHECKS |= {f"bit-for-bit-8bit-{zero}": partial(resumed_bit_for_bit, zero=zero, optim="adamw_8bit") for zero in STAGES}
CHECKS |= {f"for-others-{zero}": partial(saved_for_others, zero=zero) for zero in ("zero0", "zero2", "zero3")}
CHECKS |= {f"disk-full-on-{process}": partial(disk_full_on, process=process, patch=no_space) for process in (0, 1)}
CHECKS |= {"eight-bits": eight_bits_stay_where_they_were_cut, "nowhere": nowhere_to_write}
CHECKS |= {"empty-tensors": empty_tensors_are_not_saved}


@pytest.mark.launch
@pytest.mark.parametrize("check", CHECKS)
def test_on_two_processes(check: str, together: Together) -> None:
    assert not together.wrong(__name__, check)


@pytest.mark.launch
@pytest.mark.parametrize("before", ["zero0", "zero2", "zero3"])
def test_saved_by_two_and_resumed_by_one(before: str, together: Together, alone: World) -> None:
    folder = together.folder(__name__, f"for-others-{before}")
    expected = load_file(folder / "expected.safetensors")
    for zero in ("zero0", "zero1", "zero2", "zero3"):
        engine = resumed(folder, alone, zero)
        train(engine, [3, 4], alone)
        found = capture(engine)
        engine.close()
        assert furthest({**found.weights, **found.optimizer}, expected) < 1e-6, zero


@pytest.mark.launch
def test_eight_bits_saved_by_two_are_refused_by_one(together: Together, alone: World) -> None:
    with pytest.raises(CheckpointError, match="cut for 2 processes at ZeRO stage 2 and cannot be cut for 1 at stage 2"):
        resumed(together.folder(__name__, "eight-bits"), alone, "zero2", "adamw_8bit")


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


DAMAGE: dict[str, Callable[[Path], None]] = {"flipped": flip, "truncated": truncate, "missing": Path.unlink}


@pytest.mark.launch
@pytest.mark.parametrize("damage", DAMAGE)
def test_every_damaged_file_is_named(damage: str, together: Together, tmp_path: Path, alone: World) -> None:
    good = together.folder(__name__, "for-others-zero2") / "checkpoints/step-000003"
    assert verify(good) == []
    for name in sorted(path.name for path in good.iterdir()):
        folder = tmp_path / name / "checkpoints/step-000003"
        shutil.copytree(good, folder)
        DAMAGE[damage](folder / name)
        if (name, damage) == ("manifest.json", "flipped"):
            continue  # its last digest, which is then that of no file: see below
        (problem,) = verify(folder)
        assert str(folder) in problem and name in problem
        with pytest.raises(CheckpointError, match=name):
            read_trained(folder)
        with pytest.raises(CheckpointError, match=r"no checkpoint in .* is good"):
            newest(RunFolder(tmp_path / name), alone)


@pytest.mark.launch
def test_a_manifest_that_is_not_whole_or_not_ours_is_refused(together: Together, tmp_path: Path) -> None:
    good = together.folder(__name__, "for-others-zero2") / "checkpoints/step-000003"
    manifest = json.loads((good / "manifest.json").read_text())
    files = {name: digest for name, digest in manifest["files"].items() if not name.startswith("optimizer-00002")}
    forged = {**manifest["files"], "progress.json": "0" * 64}
    for change, told in (
        ({"format": 99}, "format 99, and this peftkit reads 2"),
        ({"files": files}, "manifest.json does not list optimizer-00002-of-00002.safetensors"),
        ({"files": forged}, "progress.json is damaged"),
        ({"files": []}, "manifest.json"),
        ({"processes": None}, "manifest.json cannot be read"),
    ):
        folder = tmp_path / "changed"
        shutil.copytree(good, folder)
        (folder / "manifest.json").write_text(json.dumps({**manifest, **change}))
        problems = verify(folder)
        assert problems and told in problems[0]
        shutil.rmtree(folder)
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign/manifest.json").write_text('["of something else"]')
    (problem,) = verify(tmp_path / "foreign")
    assert "manifest.json cannot be read" in problem


@pytest.mark.launch
def test_what_is_in_the_folder_is_what_the_manifest_says(together: Together) -> None:
    folder = together.folder(__name__, "for-others-zero3") / "checkpoints/step-000003"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert {path.name for path in folder.iterdir()} == {"manifest.json", *manifest["files"]}
    assert (manifest["step"], manifest["processes"], manifest["zero"], manifest["base"]) == (3, 2, 3, BASE)
    assert {"peftkit", "torch", "transformers", "deepspeed"} <= set(manifest["versions"])
    trained = read_trained(folder)
    assert {name: value.shape for name, value in trained.items()} == {
        name: weight.shape for name, weight in Odd().named_parameters()
    }
    assert all(value.dtype == torch.float32 for value in trained.values())


@pytest.mark.launch
def test_killed_in_the_middle_of_a_save_leaves_nothing_that_looks_like_a_checkpoint(
    tmp_path: Path, alone: World
) -> None:
    done = run([sys.executable, Path(__file__).with_name("killed_in_a_save.py"), tmp_path])
    assert done.returncode == -signal.SIGKILL, done.stdout
    folder = RunFolder(tmp_path)
    assert sorted(path.name for path in folder.checkpoints.iterdir()) == ["step-000001", "step-000002.partial"]
    assert folder.checkpoint_steps() == [1]
    saved = newest(folder, alone)
    assert saved and (saved.folder.name, saved.progress.step, saved.passed_over) == ("step-000001", 1, [])


def test_a_folder_without_checkpoints_is_a_fresh_start(tmp_path: Path, alone: World) -> None:
    assert newest(RunFolder(tmp_path), alone) is None


@pytest.mark.parametrize(
    ("keep", "best", "left"),
    [
        (2, None, [40, 50]),
        (2, 10, [10, 40, 50]),
        (1, 50, [50]),
        (9, 10, [10, 20, 30, 40, 50]),
        (0, 10, [10, 20, 30, 40, 50]),
    ],
)
def test_the_newest_and_the_best_stay(keep: int, best: int | None, left: list[int], tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for step in (10, 20, 30, 40, 50):
        folder.checkpoint(step).mkdir(parents=True)
        (folder.checkpoint(step) / "manifest.json").write_text("{}")
    prune(folder, keep, best)
    assert folder.checkpoint_steps() == left
    assert len(list(folder.checkpoints.iterdir())) == len(left), "no half-deleted one is left"


def test_a_saved_one_knows_how_far_the_run_was(tmp_path: Path) -> None:
    (tmp_path / "progress.json").write_text(json.dumps({"step": 7, "evals": [1.5], "best_step": 7, "best": 1.5}))
    assert Saved(tmp_path, {}, []).progress == Progress(7, [1.5], 7, 1.5, 0)
