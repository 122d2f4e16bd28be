"""Training goes on while a checkpoint is written, and the checkpoint is of the step at which it was asked for."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from peftkit.engine import checkpoint
from peftkit.engine.checkpoint import Parts, Progress, newest, verify
from peftkit.engine.saver import Saver
from peftkit.engine.state import capture
from peftkit.engine.world import World
from peftkit.errors import CheckpointError
from peftkit.run_folder import RunFolder
from tests.conftest import Together
from tests.engine.odd import Odd, furthest, opened, train

Tensors = dict[str, Tensor]


def saver(folder: Path, world: World, **how: Any) -> Saver:
    return Saver(RunFolder(folder), world, {"source": "here", "fingerprint": "abc"}, **how)


@contextmanager
def writing(patch: Callable[[Callable[..., None], Tensors, Path], None]) -> Iterator[None]:
    real = checkpoint.save_file
    checkpoint.save_file = lambda tensors, path: patch(real, tensors, path)  # type: ignore[assignment, misc]
    try:
        yield
    finally:
        checkpoint.save_file = real


def the_step_that_was_asked_for_is_saved(world: World, folder: Path, zero: str) -> None:
    """Two steps are taken before a byte is written; what then is on disk is what was there before them."""
    engine, may_write = opened(Odd(), zero, world), threading.Event()
    train(engine, range(3), world)
    before = capture(engine)

    def late(real: Callable[..., None], tensors: Tensors, path: Path) -> None:
        assert may_write.wait(100)
        real(tensors, path)

    progress = Progress(step=3, evals=[1.0])
    with writing(late), saver(folder, world) as saving:
        final = saving.save(engine, progress)
        progress.step, progress.evals = 5, [1.0, 0.5]
        train(engine, [3, 4], world)
        assert not final.exists() and newest(RunFolder(folder), world) is None
        may_write.set()
    found = newest(RunFolder(folder), world)
    assert found and found.progress == Progress(step=3, evals=[1.0])
    for kind in ("trained", "optimizer"):
        expected = before.weights if kind == "trained" else before.optimizer
        assert furthest(dict(Parts(final, kind)), dict(expected)) == 0
    engine.close()


def an_error_reaches_all_at_the_next_save(world: World, folder: Path, process: int) -> None:
    engine = opened(Odd(), "zero2", world)
    train(engine, [0], world)

    def full(real: Callable[..., None], tensors: Tensors, path: Path) -> None:
        if world.process == process:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(tensors, path)

    with saver(folder, world) as saving:
        saving.save(engine, Progress(step=1))
        saving.join()
        with writing(full):
            saving.save(engine, Progress(step=2))
            train(engine, [1], world)
            with pytest.raises(CheckpointError, match=r"step 2 .* No space .*step-000001 is whole"):
                saving.save(engine, Progress(step=3))
        world.wait()
        assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step-000001"]
        world.wait()
        saving.save(engine, Progress(step=2))
    assert verify(RunFolder(folder).checkpoint(2)) == []
    engine.close()


def what_nobody_foresaw_reaches_all(world: World, folder: Path) -> None:
    """A bug in one process's thread: raised there as what it is, and heard of by the other."""
    engine = opened(Odd(), "zero2", world)

    def broken(real: Callable[..., None], tensors: Tensors, path: Path) -> None:
        if world.process == 1:
            raise ZeroDivisionError("of a bug")
        real(tensors, path)

    saving = saver(folder, world)
    with writing(broken):
        saving.save(engine, Progress(step=1))
        with pytest.raises((ZeroDivisionError, CheckpointError), match="of a bug") as told:
            saving.join()
    assert told.type is (ZeroDivisionError if world.process == 1 else CheckpointError)
    world.wait()
    assert not list((folder / "checkpoints").iterdir())
    engine.close()


def an_error_of_the_training_lets_the_save_finish(world: World, folder: Path) -> None:
    engine = opened(Odd(), "zero2", world)
    with pytest.raises(ZeroDivisionError), saver(folder, world) as saving:
        saving.save(engine, Progress(step=1))
        raise ZeroDivisionError
    world.wait()
    assert verify(RunFolder(folder).checkpoint(1)) == []
    engine.close()


CHECKS: dict[str, Any] = {
    f"asked-for-{zero}": lambda world, folder, zero=zero: the_step_that_was_asked_for_is_saved(world, folder, zero)
    for zero in ("zero0", "zero1", "zero2", "zero3")
}
CHECKS |= {
    f"error-on-{process}": lambda world, folder, process=process: an_error_reaches_all_at_the_next_save(
        world, folder, process
    )
    for process in (0, 1)
}
CHECKS |= {"bug": what_nobody_foresaw_reaches_all, "training-fails": an_error_of_the_training_lets_the_save_finish}


@pytest.mark.launch
@pytest.mark.parametrize("check", CHECKS)
def test_on_two_processes(check: str, together: Together) -> None:
    assert not together.wrong(__name__, check)


@pytest.mark.parametrize("asynchronous", [True, False])
def test_what_a_save_takes_is_told(asynchronous: bool, tmp_path: Path, alone: World) -> None:
    rows: list[dict[str, Any]] = []
    told: list[str] = []
    engine = opened(Odd(), "zero0", alone)
    how = {"asynchronous": asynchronous, "tell": told.append, "log": rows.append, "keep": 2}
    with saver(tmp_path, alone, **how) as saving:
        for step in (1, 2, 3, 4):
            train(engine, [step], alone)
            saving.save(engine, Progress(step=step, best_step=1))
    engine.close()
    folder = RunFolder(tmp_path)
    assert folder.checkpoint_steps() == [1, 3, 4], "the newest two and the best"
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert rows[3]["bytes"] == sum(file.stat().st_size for file in folder.checkpoint(4).iterdir())
    assert all(row["stall_seconds"] > 0 and row["write_seconds"] > 0 for row in rows)
    assert {row["asynchronous"] for row in rows} == {asynchronous}
    (first,) = told
    assert first.startswith("saved step-000001: ") and "training stood still for" in first


def test_a_log_that_cannot_be_written_ends_no_training(tmp_path: Path, alone: World) -> None:
    def full(row: dict[str, Any]) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    engine = opened(Odd(), "zero0", alone)
    with saver(tmp_path, alone, log=full) as saving:
        saving.save(engine, Progress(step=1))
    engine.close()
    assert verify(RunFolder(tmp_path).checkpoint(1)) == []
