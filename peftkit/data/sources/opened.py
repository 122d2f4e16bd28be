"""A file's bytes or text, through its compression; what is wrong with either is said in a sentence."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path, PurePath
from typing import Any, BinaryIO, NoReturn, TextIO
from zipfile import BadZipFile, ZipFile

from peftkit.errors import DataError

BROKEN = (EOFError, OSError, zlib.error, lzma.LZMAError, BadZipFile)


def inner_name(path: Path) -> str:
    """The name of what is compressed: `rows.jsonl` of rows.jsonl.gz; a zip without such a name names its member."""
    if path.suffix.lower() not in OPENERS:
        return path.name
    stem = path.name[: -len(path.suffix)]
    if path.suffix.lower() == ".zip" and not PurePath(stem).suffix and path.is_file():
        with _whole(path), ZipFile(path) as packed:
            return PurePath(_member(packed, path)).name
    return stem


@contextmanager
def text(path: Path, newline: str | None) -> Iterator[TextIO]:
    """Its text, which must be UTF-8 (with or without a byte order mark)."""
    with binary(path) as raw, io.TextIOWrapper(raw, encoding="utf-8-sig", newline=newline) as file:
        try:
            yield file
        except UnicodeDecodeError:
            _refuse_encoding(path)


@contextmanager
def binary(path: Path) -> Iterator[BinaryIO]:
    """Its bytes, decompressed while they are read."""
    opener = OPENERS.get(path.suffix.lower())
    with ExitStack() as stack:
        if opener is None:
            yield stack.enter_context(path.open("rb"))
        else:
            stack.enter_context(_whole(path))
            yield opener(path, stack)


@contextmanager
def _whole(path: Path) -> Iterator[None]:
    try:
        yield
    except PermissionError:
        raise
    except BROKEN as problem:
        reason = (str(problem).splitlines() or [type(problem).__name__])[0]
        raise DataError(
            f"{path.name} is broken: its {path.suffix} compression does not end well or is none ({reason});"
            " fetch or pack the file again"
        ) from None


def _member(packed: ZipFile, path: Path) -> str:
    names = [name for name in packed.namelist() if not name.endswith("/") and not _is_hidden(PurePath(name))]
    if len(names) != 1:
        raise DataError(f"{path.name} holds {len(names)} files; a .zip with one is read: unpack it and name the folder")
    if packed.getinfo(names[0]).flag_bits & 1:
        raise DataError(f"{path.name} is locked by a password: unpack it and name the file in it")
    return names[0]


def _is_hidden(path: PurePath) -> bool:
    return path.name.startswith(".") or "__MACOSX" in path.parts


def _from_zip(path: Path, stack: ExitStack) -> BinaryIO:
    packed = stack.enter_context(ZipFile(path))
    return stack.enter_context(_buffered(packed.open(_member(packed, path))))


def _from_zst(path: Path, stack: ExitStack) -> BinaryIO:
    try:
        import zstandard
    except ImportError:
        raise DataError(f"{path.name} needs the package zstandard: pip install zstandard") from None
    raw = stack.enter_context(path.open("rb"))
    return stack.enter_context(_buffered(_Frames(raw, zstandard.ZstdDecompressor().decompressobj)))


def _buffered(raw: Any) -> BinaryIO:
    return io.BufferedReader(raw, 1 << 16)


class _Frames(io.RawIOBase):
    """Zstandard's frames one after the other. The package's own reader takes a file that breaks off for a short one."""

    def __init__(self, raw: BinaryIO, new_frame: Callable[[], Any]) -> None:
        self._raw = raw
        self._new = new_frame
        self._frame = self._new()
        self._begun = False
        self._ready = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        while not self._ready and (packed := self._frame.unused_data or self._raw.read(1 << 16)):
            self._unpack(packed)
        if not self._ready and self._begun:
            raise EOFError("it breaks off")
        count = min(len(buffer), len(self._ready))
        buffer[:count], self._ready = self._ready[:count], self._ready[count:]
        return count

    def _unpack(self, packed: bytes) -> None:
        from zstandard import ZstdError

        if self._frame.eof:
            self._frame = self._new()
        try:
            self._ready = self._frame.decompress(packed)
        except ZstdError as problem:
            raise EOFError(str(problem)) from None
        self._begun = not self._frame.eof


def _refuse_encoding(path: Path) -> NoReturn:
    before = 0
    with binary(path) as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode()
            except UnicodeDecodeError as problem:
                hint = " (it looks like UTF-16)" if number == 1 and line[:2] in (b"\xff\xfe", b"\xfe\xff") else ""
                raise DataError(
                    f"{path.name} line {number}: byte {before + problem.start} of the file is not UTF-8{hint};"
                    " save the file as UTF-8"
                ) from None
            before += len(line)
    raise DataError(f"{path.name} is not UTF-8; save the file as UTF-8")


def _from(opener: Callable[[Path], Any]) -> Callable[[Path, ExitStack], BinaryIO]:
    return lambda path, stack: stack.enter_context(opener(path))


OPENERS: dict[str, Callable[[Path, ExitStack], BinaryIO]] = {
    ".gz": _from(gzip.open),
    ".bz2": _from(bz2.open),
    ".xz": _from(lzma.open),
    ".zst": _from_zst,
    ".zip": _from_zip,
}
