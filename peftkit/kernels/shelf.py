"""Activations on disk: of each row of tokens its hidden states, written once by whichever process computed them.

Each process that writes has a file of its own, PART.values, and beside it PART.index with a record for each row, written
after the row's values. Both only grow. A record ends with a checksum of itself and holds one of the values, so what a
killed process left half-written, or a disk changed, is not taken for a row: it is computed again.
"""

from __future__ import annotations

import os
import shutil
import struct
import zlib
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

import torch
from torch import Tensor

VALUES, INDEX = ".values", ".index"
RECORD = struct.Struct("<QQQI")
"""The row's number, where its values begin, how many bytes they are, their checksum; the record's own checksum follows."""
CHECK = struct.Struct("<I")
SIZE = RECORD.size + CHECK.size


@dataclass(frozen=True)
class Kept:
    """Where a row's values lie."""

    part: str
    start: int
    size: int
    check: int


@dataclass
class Shelf:
    """The rows of one folder, as one process sees them: it finds what others have written, and adds what it computed."""

    folder: Path
    width: int
    """Numbers of one token."""
    dtype: torch.dtype
    """The format on disk."""
    room: int
    """Bytes that this process may still write."""
    damaged: int = 0
    """Rows whose values were not those that had been written."""
    _rows: dict[int, Kept] = field(default_factory=dict)
    _read: dict[str, int] = field(default_factory=dict)
    """How far each index has been read."""
    _files: dict[str, int] = field(default_factory=dict)
    _checked: set[int] = field(default_factory=set)
    _own: str = ""

    def __contains__(self, row: int) -> bool:
        return row in self._rows

    @property
    def tokens(self) -> int:
        """Of any row that is here: pictures of one size have as many. 1 if there is none."""
        size = next((place.size for place in self._rows.values()), self.width * self.dtype.itemsize)
        return size // (self.width * self.dtype.itemsize)

    def look(self) -> None:
        """Take notice of what has been written since the last look, by any process."""
        for path in self.folder.glob(f"*{INDEX}"):
            if path.stem != self._own:
                with suppress(OSError):  # cleared away by another run, to make room
                    self._take(path)

    def get(self, row: int) -> Tensor | None:
        """The row's hidden states, (tokens, width) in the format on disk; None where there are none, or they are damaged."""
        place = self._rows.get(row)
        if place is None:
            return None
        values = self._values(place)
        if values is None or (row not in self._checked and zlib.crc32(values) != place.check):
            self.damaged += 1
            del self._rows[row]
            return None
        self._checked.add(row)
        return torch.frombuffer(values, dtype=self.dtype).view(-1, self.width)

    def put(self, row: int, states: Tensor) -> None:
        """Keep a row's hidden states, (tokens, width), if there is room for them."""
        values = states.detach().to("cpu", self.dtype).contiguous().view(torch.uint8).numpy().tobytes()
        if row in self._rows or len(values) > self.room:
            return
        try:
            self._write(row, values)
        except OSError:  # a full disk: what is there stays, and the rest is computed anew each time
            self.room = 0

    def close(self) -> None:
        for handle in self._files.values():
            os.close(handle)
        self._files.clear()
        self._own = ""

    def _write(self, row: int, values: bytes) -> None:
        if not self._own:
            self._own = f"{os.getpid()}-{uuid4().hex}"
        handle = self._open(self._own, VALUES, os.O_RDWR | os.O_CREAT)
        start = os.lseek(handle, 0, os.SEEK_END)
        if _write_all(handle, values):
            place = Kept(self._own, start, len(values), zlib.crc32(values))
            record = RECORD.pack(row, start, place.size, place.check)
            index = self._open(self._own, INDEX, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            if _write_all(index, record + CHECK.pack(zlib.crc32(record))):
                self._rows[row] = place
                self._checked.add(row)
                self.room -= len(values)
                return
        self.room = 0

    def _take(self, index: Path) -> None:
        seen = self._read.get(index.stem, 0)
        if index.stat().st_size < seen + SIZE:
            return
        with index.open("rb") as file:
            file.seek(seen)
            found = file.read()
        for at in range(0, len(found) - SIZE + 1, SIZE):
            record = found[at : at + RECORD.size]
            if CHECK.unpack_from(found, at + RECORD.size)[0] == zlib.crc32(record):
                row, start, size, check = RECORD.unpack(record)
                self._rows.setdefault(row, Kept(index.stem, start, size, check))
            seen += SIZE
        self._read[index.stem] = seen

    def _values(self, place: Kept) -> bytearray | None:
        values = bytearray(place.size)
        try:
            handle = self._open(place.part, VALUES, os.O_RDWR if place.part == self._own else os.O_RDONLY)
            return values if os.preadv(handle, [values], place.start) == place.size else None
        except OSError:
            return None

    def _open(self, part: str, end: str, flags: int) -> int:
        name = part + end
        if name not in self._files:
            self._files[name] = os.open(self.folder / name, flags | os.O_CLOEXEC, 0o644)
        return self._files[name]


def _write_all(handle: int, values: bytes) -> bool:
    """Whether all of it was written."""
    return os.write(handle, values) == len(values)


def open_shelf(folder: Path, width: int, dtype: torch.dtype, budget: int, processes: int) -> Shelf:
    """The shelf of `folder`, of which each of the processes may fill its share of what is left of `budget` bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    os.utime(folder)
    shelf = Shelf(folder, width, dtype, max(0, budget - size_of(folder)) // processes)
    shelf.look()
    return shelf


def make_room(root: Path, folder: Path, budget: int) -> None:
    """Remove what other runs left under `root`, the longest unused first, until it is no more than `budget` bytes.

    A run that reads there still has its files open, and computes what it cannot open any more.
    """
    others = [entry for entry in root.glob("*") if entry.is_dir() and entry != folder] if root.is_dir() else []
    sizes = {entry: size_of(entry) for entry in others}
    for entry in sorted(others, key=lambda entry: entry.stat().st_mtime):
        if sum(sizes.values()) <= budget:
            return
        shutil.rmtree(entry, ignore_errors=True)
        del sizes[entry]


def size_of(folder: Path) -> int:
    """Bytes of the values that lie in a folder."""
    total = 0
    for path in folder.glob(f"*{VALUES}"):
        with suppress(OSError):
            total += path.stat().st_size
    return total
