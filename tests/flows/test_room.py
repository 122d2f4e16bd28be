"""A disk that is full, or becomes so, or may not be written: told before the first step, or with nothing lost."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from peftkit.cli.main import main
from peftkit.engine import checkpoint
from peftkit.engine.checkpoint import verify
from peftkit.flows.attempt import Attempt
from peftkit.run_folder import RunFolder
from tests.flows.conftest import Refused
from tests.forked import Process, Server
from tests.mounts import read_only, small_disk
from tests.tiny import save_tiny

STEPS = 8
CHECKPOINT = 39_072 * 12
"""The tiny model's weights in fp32, with what AdamW keeps of them."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("room")
    save_tiny(folder / "llama", "llama", attention_dropout=0.1)
    rows = [{"prompt": f"say {row}", "response": "word " * (1 + row % 3)} for row in range(12)]
    (folder / "chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def words(data: Path, out: Path, *more: str) -> list[str]:
    common = ["train", "--model", f"{data}/llama", "--data", f"{data}/chat.jsonl", "--data.holdout", "0"]
    common += ["--strategy", "full", "--batch.total", "4", "--batch.micro", "2", "--steps", f"{STEPS}"]
    return [*common, "--checkpoint.every", "2", "--out", f"{out}", *more]


def test_what_does_not_fit_is_refused_before_the_first_step(data: Path, tmp_path: Path, refused: Refused) -> None:
    with small_disk(tmp_path / "disk", "1500k") as disk:
        said = refused(words(data, disk / "run"), 1)
        assert "this run will write 2.0 MB (4 checkpoints of 501.6 kB), and" in said
        assert "are free there; free" in said and "lower --checkpoint.keep (it is 2)" in said
        assert not (disk / "run/metrics.jsonl").exists() and not (disk / "run/checkpoints").exists()
        assert main(words(data, disk / "run", "--checkpoint.every", "8", "--resume")) == 0, "the way out"


def test_what_fits_as_told_does_fit(data: Path, tmp_path: Path) -> None:
    """On a disk with hardly more room than is asked for, the run comes to its end."""
    with small_disk(tmp_path / "disk", "2200k") as disk:
        assert main(words(data, disk / "run")) == 0
        assert RunFolder(disk / "run").checkpoint_steps() == [6, 8]
        written = sum(file.stat().st_size for file in (disk / "run/checkpoints/step-000008").iterdir())
        assert CHECKPOINT < written < CHECKPOINT + 32_768


def test_a_folder_that_may_not_be_written(data: Path, tmp_path: Path, refused: Refused) -> None:
    assert main(words(data, tmp_path / "run")) == 0
    with read_only(tmp_path):
        said = refused(words(data, tmp_path / "run", "--resume"), 1)
        assert f"--out {tmp_path}/run cannot be written (Read-only file system on " in said
        said = refused(words(data, tmp_path / "new"), 2)
        assert f"--out {tmp_path}/new cannot be made (Read-only file system); name a folder elsewhere" in said


def test_what_is_one_too_many_goes_at_the_next_start(data: Path, tmp_path: Path) -> None:
    """Killed between its last checkpoint and the removal of an old one, a run is done when it is started again."""
    assert main(words(data, tmp_path / "run", "--checkpoint.keep", "3")) == 0
    folder = RunFolder(tmp_path / "run")
    assert folder.checkpoint_steps() == [4, 6, 8]
    assert main(words(data, tmp_path / "run", "--checkpoint.keep", "2", "--resume")) == 0
    assert folder.checkpoint_steps() == [6, 8]


def fill_at_step_3() -> None:
    """In the training's own process: another one fills the disk."""
    advance = Attempt.advance

    def then(self: Attempt, step: int) -> None:
        advance(self, step)
        if step == 3 and self.world.first:
            with suppress(OSError), (self.folder.path.parent / "filler").open("wb", buffering=0) as filler:
                while True:
                    filler.write(b"0" * 4096)

    Attempt.advance = then  # type: ignore[method-assign]


@pytest.mark.launch
@pytest.mark.parametrize("asynchronous", ["true", "false"])
def test_a_disk_that_fills_up_costs_no_checkpoint(
    asynchronous: str, data: Path, tmp_path: Path, server: Server
) -> None:
    def live(out: Path, **env: str) -> list[Process]:
        more = ["--checkpoint.asynchronous", asynchronous, "--resume"]
        return server.start(words(data, out, *more), tmp_path / "said", 2, **env)

    assert [one.wait() for one in live(tmp_path / "whole")] == [0, 0]
    with small_disk(tmp_path / "disk", "8m") as disk:
        world = live(disk / "run", PEFTKIT_TEST_HOOK="tests.flows.test_room:fill_at_step_3")
        assert [one.wait() for one in world] == [1, 1], world[0].said()
        said = world[0].said()
        assert "the checkpoint of step 4 could not be written: " in said and "No space left on device" in said
        assert f"make room on the disk of {disk}/run; step-000002 is whole, go on from it with --resume" in said
        assert "Traceback" not in said + world[1].said()
        folder = RunFolder(disk / "run")
        assert [path.name for path in folder.checkpoints.iterdir()] == ["step-000002"]
        assert verify(folder.checkpoint(2)) == []
        assert [one.wait() for one in live(disk / "run")] == [1, 1], "it is still full"
        (disk / "filler").unlink()
        assert [one.wait() for one in live(disk / "run")] == [0, 0]
        assert contents(disk / "run") == contents(tmp_path / "whole")


def contents(out: Path) -> dict[str, Any]:
    """Bytes of the checkpoints, and the rows without their times."""
    files = [file for file in sorted(out.glob("checkpoints/*/*")) if file.name != "manifest.json"]
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    found: dict[str, Any] = {str(file.relative_to(out)): file.read_bytes() for file in files}
    return found | {"rows": [{**row, "seconds": 0, "memory": 0} for row in rows]}


@pytest.mark.launch
def test_in_the_background_or_not_the_run_is_the_same(data: Path, tmp_path: Path, server: Server) -> None:
    for name in ("true", "false"):
        more = ["--checkpoint.asynchronous", name, "--deepspeed", "zero1"]
        world = server.start(words(data, tmp_path / name, *more), tmp_path / "said", 2)
        assert [one.wait() for one in world] == [0, 0], world[0].said()
        rows = [json.loads(line) for line in (tmp_path / name / "saves.jsonl").read_text().splitlines()]
        assert [row["step"] for row in rows] == [2, 4, 6, 8]
        newest = tmp_path / name / "checkpoints/step-000008"
        assert rows[-1]["bytes"] == sum(file.stat().st_size for file in newest.iterdir())
        assert "saved step-000002: 0.5 MB in " in world[0].said()
    assert contents(tmp_path / "true") == contents(tmp_path / "false")


def a_disk_that_hangs_and_a_training_that_fails() -> None:
    """In the training's own process."""
    advance = Attempt.advance

    def hang(*words: Any) -> None:
        time.sleep(3600)

    def then(self: Attempt, step: int) -> None:
        advance(self, step)
        if step == 3:
            raise RuntimeError("boom")

    checkpoint.save_file = hang  # type: ignore[assignment]
    Attempt.advance = then  # type: ignore[method-assign]


@pytest.mark.launch
def test_a_save_that_hangs_keeps_no_failed_training_alive(data: Path, tmp_path: Path, server: Server) -> None:
    hook = {"PEFTKIT_TEST_HOOK": "tests.flows.test_room:a_disk_that_hangs_and_a_training_that_fails"}
    (one,) = server.start(words(data, tmp_path / "run"), tmp_path / "said", **hook)
    assert one.wait(timeout=90) == 1
    assert "boom" in one.said() and RunFolder(tmp_path / "run").checkpoint_steps() == []
