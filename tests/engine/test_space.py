"""What a run will write is known before it is written, and whether a disk takes it."""

from __future__ import annotations

from pathlib import Path

import pytest

from peftkit.engine import space
from peftkit.engine.space import Writing, is_of_disk, lacking, more_at_once, saves_left, size, unwritable
from tests.mounts import read_only, small_disk


@pytest.mark.parametrize(
    ("there", "saves", "keep", "more"),
    [
        (0, 9, 2, 4),  # two that stay, the best, and the one that is being written
        (0, 2, 2, 2),
        (4, 9, 2, 1),  # an old one goes when the new one is whole
        (3, 9, 2, 1),
        (3, 9, 1, 1),
        (3, 9, 0, 9),
        (3, 0, 2, 0),
        (3, 0, 0, 0),
    ],
)
def test_checkpoints_that_lie_there_at_once(there: int, saves: int, keep: int, more: int) -> None:
    assert more_at_once(there, saves, keep) == more


@pytest.mark.parametrize(
    ("done", "steps", "every", "left"),
    [(0, 10, [5], 2), (0, 11, [5], 3), (5, 11, [5], 2), (0, 12, [4, 6], 4), (0, 12, [5, 5], 3), (12, 12, [4], 0)],
)
def test_saves_that_are_still_to_come(done: int, steps: int, every: list[int], left: int) -> None:
    assert saves_left(done, steps, every) == left


def test_bytes_are_told_as_one_reads_them() -> None:
    assert [size(count) for count in (7, 1500, 2_500_000, 3.2e9, 4e12, 5e15)] == [
        "7 bytes", "1.5 kB", "2.5 MB", "3.2 GB", "4.0 TB", "5,000.0 TB",
    ]  # fmt: skip
    assert str(Writing(2_000_000, 3, 1000)) == "3 checkpoints of 2.0 MB and an export of 1.0 kB"


def test_a_disk_that_is_too_small(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "1m") as disk:
        assert lacking(disk, Writing(500_000, 2)) is None
        told = lacking(disk, Writing(500_000, 3))
        assert told == "1.0 MB are free there; free 451.4 kB"
        assert not list(disk.iterdir())


def test_what_a_quota_would_refuse(tmp_path: Path) -> None:
    """No quota can be set here; a disk that is full answers the same question in the same way."""
    with small_disk(tmp_path / "disk", "1m") as disk:
        assert space._refused(disk, 2_000_000)
        assert not space._refused(disk, 500_000)
        assert space._is_in_memory(disk) and not space._is_in_memory(Path("/proc"))
        assert not list(disk.iterdir()), "nothing is left of the question"
    assert not space._refused(tmp_path, 1)


def test_a_disk_that_may_not_be_written(tmp_path: Path) -> None:
    assert unwritable(tmp_path / "new/folder") is None
    with read_only(tmp_path / "new/folder") as folder:
        assert unwritable(folder) == "Read-only file system"
        assert unwritable(folder / "below") == "Read-only file system"
    (tmp_path / "file").touch()
    assert unwritable(tmp_path / "file/below") == "Not a directory"


def test_what_is_said_of_a_disk_is_known(tmp_path: Path) -> None:
    assert is_of_disk(OSError(28, "No space left on device"))
    assert is_of_disk("Error while serializing: I/O error: No space left on device (os error 28)")
    assert is_of_disk("[Errno 30] Read-only file system: 'x'") and is_of_disk("Disk quota exceeded")
    assert not is_of_disk(OSError(2, "No such file or directory")) and not is_of_disk("step 28")
