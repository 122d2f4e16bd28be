"""Files and folders that appear complete or not at all, whatever kills the program: beside first, then renamed."""

from __future__ import annotations

import ctypes
import os
import shutil
import socket
from pathlib import Path

EXCHANGE = 2
"""renameat2's flag: the two names change places in one instant."""
AT_CWD = -100
OLD, PART, ASIDE = ".old", ".part", ".aside"


def write_whole(path: Path, text: str) -> None:
    """Let `path` hold `text`, or stay as it was: no reader, and no crash, meets half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.{socket.gethostname()}.{os.getpid()}{PART}")  # pids are alike on two machines
    try:
        with beside.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def put_in_place(new: Path, folder: Path) -> None:
    """The folder `new` becomes `folder`; what was there goes only once the new one is in its place."""
    if not folder.exists():
        new.rename(folder)
    elif _exchanged(new, folder):
        shutil.rmtree(new)
    else:
        old = _old(folder)
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
        new.rename(folder)  # killed before this, `recover` finds the old one
        shutil.rmtree(old)
    synchronise(folder.parent)


def recover(folder: Path) -> None:
    """Undo a `put_in_place` that was killed between its two renames."""
    old = _old(folder)
    if old.is_dir() and not folder.exists():
        old.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def put_aside(folder: Path) -> None:
    """Let the folder lie under another name: `step-000006.aside`, or `.aside-2`, ..."""
    number, aside = 2, folder.with_name(f"{folder.name}{ASIDE}")
    while aside.exists():
        number, aside = number + 1, folder.with_name(f"{folder.name}{ASIDE}-{number}")
    folder.rename(aside)


def remove(folder: Path, suffix: str) -> None:
    """Delete a folder under another name, `suffix` behind its own: half-deleted it must not be taken for whole."""
    doomed = folder.with_name(folder.name + suffix)
    shutil.rmtree(doomed, ignore_errors=True)
    folder.rename(doomed)
    shutil.rmtree(doomed)


def synchronise(path: Path) -> None:
    """Wait until a file's bytes, or a folder's names, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _old(folder: Path) -> Path:
    return folder.with_name(folder.name + OLD)


def _exchanged(one: Path, other: Path) -> bool:
    """Whether the file system could do it: Linux's local ones can, NFS cannot."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    return bool(rename(AT_CWD, os.fsencode(one), AT_CWD, os.fsencode(other), EXCHANGE) == 0)
