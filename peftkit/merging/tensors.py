"""Safetensors read and written a tensor at a time, through one buffer: no file is ever mapped or held whole.

The format (https://github.com/huggingface/safetensors): eight bytes of length, a JSON header, the tensors' bytes.
"""

from __future__ import annotations

import errno
import fcntl
import json
import math
import mmap
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from peftkit.errors import ModelError

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
NAMES = {dtype: name for name, dtype in DTYPES.items()}
LONGEST_HEADER = 100_000_000
"""Bytes; what the safetensors library allows."""
AT_ONCE = 1 << 22
"""Bytes asked of the system in one call."""


@dataclass(frozen=True)
class Stored:
    """A tensor in a file."""

    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    """Its first byte in the file."""
    size: int
    """Bytes."""

    def read(self, room: Tensor | None = None) -> Tensor:
        """The tensor, in memory of its own, or in the first of the bytes that `room` has."""
        held = torch.empty(self.size, dtype=torch.uint8) if room is None else room[: self.size]
        view, done = memoryview(_bytes(held)), 0
        with self.file.open("rb", buffering=0) as file:
            while done < self.size:
                got = os.preadv(file.fileno(), [view[done : done + AT_ONCE]], self.start + done)
                if not got:
                    raise ModelError(f"{self.file} became shorter while it was read; fetch it again")
                done += got
        return held.view(self.dtype).reshape(self.shape)


def _bytes(tensor: Tensor) -> Any:
    """The memory of a tensor of bytes."""
    return tensor.numpy()


def stored_in(file: Path) -> dict[str, Stored]:
    """The tensors of a safetensors file, by name. ModelError if the file is damaged, cut short, or is none."""
    try:
        with file.open("rb") as stream:
            found = _header(stream, file.stat().st_size)
        entries = {name: _entry(file, *values) for name, values in found.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as problem:
        raise ModelError(f"{file} is corrupt or cut short ({problem}); fetch it again") from problem
    return entries


def _header(stream: BinaryIO, size: int) -> dict[str, tuple[Mapping[str, Any], int]]:
    """What the header says of each tensor, and where the bytes begin; ValueError if it does not fit the file."""
    length = int.from_bytes(stream.read(8), "little")
    if not 2 <= length <= min(LONGEST_HEADER, size - 8):
        raise ValueError(f"a header of {length:,} bytes in a file of {size:,}")
    header = json.loads(stream.read(length))
    header.pop("__metadata__", None)
    end = 0
    for name, said in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        first, last = said["data_offsets"]
        if first != end or last < first:
            raise ValueError(f"the bytes of {name} are not where they should be")
        end = last
    if 8 + length + end != size:
        raise ValueError(f"{size:,} bytes where its header says {8 + length + end:,}")
    return {name: (said, 8 + length) for name, said in header.items()}


def _entry(file: Path, said: Mapping[str, Any], begin: int) -> Stored:
    if said["dtype"] not in DTYPES:
        raise ValueError(f"tensors of type {said['dtype']}")
    dtype, shape, (first, last) = DTYPES[said["dtype"]], tuple(said["shape"]), said["data_offsets"]
    if last - first != math.prod(shape) * dtype.itemsize or any(side < 0 for side in shape):
        raise ValueError(f"a tensor of shape {list(shape)} in {last - first:,} bytes")
    return Stored(file, dtype, shape, begin + first, last - first)


class Shard:
    """A safetensors file that is written tensor after tensor, in the order of `entries` (name, dtype, shape).

    with Shard(path, entries) as shard:
        shard.put(tensor)        # for each entry

    It goes past the page cache where the file system lets it: what is written is read by nobody soon, and to find pages
    for it takes longer than the merge itself.
    """

    def __init__(self, path: Path, entries: Iterable[tuple[str, torch.dtype, tuple[int, ...]]]) -> None:
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        end = 0
        for name, dtype, shape in entries:
            size = math.prod(shape) * dtype.itemsize
            header[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [end, end + size]}
            end += size
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # the tensors begin at a multiple of eight
        self.room = mmap.mmap(-1, AT_ONCE)  # as aligned as such a file wants it
        self.held = 0
        self.file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            _set_direct(self.file, True)
            self._put(memoryview(len(text).to_bytes(8, "little") + text))
        except BaseException:
            os.close(self.file)
            raise

    def put(self, tensor: Tensor) -> None:
        held = tensor.contiguous().reshape(-1)
        if held.numel():
            self._put(memoryview(_bytes(held.view(torch.uint8))))

    def copy(self, stored: Stored) -> None:
        """The bytes as they are."""
        left = stored.size
        with stored.file.open("rb", buffering=0) as source:
            source.seek(stored.start)
            while left:
                with memoryview(self.room) as room:
                    got = source.readinto(room[self.held : self.held + left])
                if not got:
                    raise ModelError(f"{stored.file} became shorter while it was read; fetch it again")
                left -= got
                self._hold(got)

    def _put(self, view: memoryview) -> None:
        while view:
            count = min(len(view), AT_ONCE - self.held)
            self.room[self.held : self.held + count] = view[:count]
            self._hold(count)
            view = view[count:]

    def _hold(self, count: int) -> None:
        self.held += count
        if self.held == AT_ONCE:
            self._flush()

    def _flush(self) -> None:
        with memoryview(self.room) as room:
            done = 0
            while done < self.held:
                try:
                    done += os.write(self.file, room[done : self.held])
                except OSError as problem:
                    if problem.errno != errno.EINVAL or not _set_direct(self.file, False):
                        raise
        self.held = 0

    def __enter__(self) -> Shard:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                _set_direct(self.file, False)  # the rest is no whole number of blocks
                self._flush()
                os.fsync(self.file)
        finally:
            os.close(self.file)


def _set_direct(file: int, on: bool) -> bool:
    """Whether the file now goes past the page cache, or no more, and did not before."""
    now = fcntl.fcntl(file, fcntl.F_GETFL)
    wanted = now | os.O_DIRECT if on else now & ~os.O_DIRECT
    if wanted == now:
        return False
    try:
        fcntl.fcntl(file, fcntl.F_SETFL, wanted)
    except OSError:  # a file system that cannot
        return False
    return True
