"""Room on a disk: what a run will write, what is free there, and whether a quota allows it, before the first step."""

from __future__ import annotations

import ctypes
import errno
import math
import os
import struct
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
"""What the system says of a disk that takes no more."""
FOR_EACH_PROCESS = 32_768
"""Bytes in a checkpoint: random numbers, counters, the headers of its files."""
KEEP_SIZE = 1
"""fallocate's flag: blocks are set aside, and the file stays empty."""
IN_MEMORY = (0x01021994, 0x858458F6)
"""What statfs calls tmpfs and ramfs: setting room aside there takes main memory, and free space is told exactly."""


@dataclass(frozen=True)
class Writing:
    """What a run will write, in bytes."""

    checkpoint: int
    """Each checkpoint."""
    checkpoints: int
    """How many more there will be at once, at most."""
    export: int = 0
    rows: int = 0
    """metrics.jsonl and its like."""

    @property
    def total(self) -> int:
        return self.checkpoint * self.checkpoints + self.export + self.rows

    def __str__(self) -> str:
        parts = [f"{self.checkpoints} checkpoint{'s' * (self.checkpoints != 1)} of {size(self.checkpoint)}"]
        return " and ".join(parts + [f"an export of {size(self.export)}"] * bool(self.export))


def checkpoint_bytes(weights: int, of_each: float, processes: int) -> int:
    """Of a checkpoint of so many trained weights, which take `of_each` bytes with what the optimizer keeps of them."""
    return math.ceil(weights * of_each) + processes * FOR_EACH_PROCESS


def more_at_once(there: int, saves: int, keep: int) -> int:
    """How many checkpoints will lie beside the `there` ones, when `saves` more are written and the newest `keep` (0: all) stay.

    The best one stays as well, and an old one goes only when the new one is whole.
    """
    most = min(there + saves, keep + 2) if keep else there + saves
    return max(most - there, min(1, saves))


def saves_left(done: int, steps: int, every: Sequence[int]) -> int:
    """The steps after `done` at which something is due that comes `every` so many steps; the last step always is."""
    due = {step for period in every for step in range(period * (done // period + 1), steps + 1, period)}
    return len(due | {steps}) if steps > done else 0


def is_of_disk(problem: object) -> bool:
    """Whether an error, or what was told of it, says that a disk takes no more."""
    if isinstance(problem, OSError) and problem.errno in FULL:
        return True
    return any(os.strerror(number) in str(problem) for number in FULL)


def unwritable(folder: Path) -> str | None:
    """Why nothing can be written into a folder, which is made, in the system's words; None if something can."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"peftkit")
            file.flush()
    except OSError as problem:
        return problem.strerror or str(problem)
    return None


def lacking(folder: Path, writing: Writing) -> str | None:
    """In a sentence, why the disk of `folder` does not take that much; None if it does, as far as can be told."""
    stat = os.statvfs(folder)
    free = stat.f_bavail * stat.f_frsize
    if writing.total > free:
        return f"{size(free)} are free there; free {size(writing.total - free)}"
    if not _is_in_memory(folder) and _refused(folder, writing.total):
        return f"a quota does not allow that, though {size(free)} are free; ask for a larger one"
    return None


def size(count: float) -> str:
    """Bytes as one reads them."""
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            break
        count /= 1000
    return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:,.1f} {unit}"


def _refused(folder: Path, count: int) -> bool:
    """Whether the file system would not set so many bytes aside. One that cannot set any aside refuses nothing.

    The system's own call: the C library's stand-in for file systems that lack it would write all these bytes.
    """
    library = ctypes.CDLL(None, use_errno=True)
    call = getattr(library, "fallocate64", None) or getattr(library, "fallocate", None)
    if call is None:
        return False
    with tempfile.TemporaryFile(dir=folder) as file:
        done = call(file.fileno(), KEEP_SIZE, ctypes.c_int64(0), ctypes.c_int64(count))
        return bool(done) and ctypes.get_errno() in (errno.ENOSPC, errno.EDQUOT)


def _is_in_memory(folder: Path) -> bool:
    buffer = ctypes.create_string_buffer(512)
    try:
        if ctypes.CDLL(None).statfs(os.fsencode(folder), buffer):
            return False
    except (OSError, AttributeError):
        return False
    return struct.unpack_from("l", buffer)[0] in IN_MEMORY
