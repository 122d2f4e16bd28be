"""Where what is worth keeping between runs lies (encoded rows, converted models, digests), and how it gets there whole."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path


def cache_root(path: Path | None) -> Path:
    """`path`, else $PEFTKIT_CACHE, else ~/.cache/peftkit."""
    return (path or Path(os.environ.get("PEFTKIT_CACHE") or "~/.cache/peftkit")).expanduser()


def once(target: Path, build: Callable[[Path], None], is_whole: Callable[[Path], bool] = Path.exists) -> Path:
    """The folder `target`; if it is not there (or not whole), `build(folder)` fills one beside it, which is then renamed.

    One process builds and the others wait, so `target` is complete or absent. What a killed process left is removed.
    """
    from filelock import FileLock

    if is_whole(target):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if not is_whole(target):
            beside = target.with_name(f"{target.name}.part")
            for left_behind in (target, beside):
                if left_behind.is_symlink():  # to one that was damaged
                    left_behind.unlink()
                shutil.rmtree(left_behind, ignore_errors=True)
            beside.mkdir()
            build(beside)
            beside.rename(target)
    return target


def digest(file: Path, root: Path) -> str:
    """sha256 of a file, kept under `root` for as long as the file's path, size and time stay the same."""
    stat = file.stat()
    named = f"{file.resolve()}|{stat.st_size}|{stat.st_mtime_ns}"
    kept = root / "digests" / hashlib.sha256(named.encode()).hexdigest()
    if kept.exists() and len(known := kept.read_text()) == 64:
        return known
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    kept.parent.mkdir(parents=True, exist_ok=True)
    beside = kept.with_name(f"{kept.name}.{os.getpid()}")
    beside.write_text(found)
    beside.replace(kept)
    return found
