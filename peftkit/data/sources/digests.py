"""What files hold, in letters: found once for as long as their names, sizes and times stay the same."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from peftkit.cache import digest


def below(folder: Path, files: Sequence[Path]) -> dict[str, Path]:
    """Each file under its name in `folder`."""
    return {os.path.relpath(file, folder): file for file in files}


def together(files: Mapping[str, Path], root: Path) -> str:
    """sha256 over the names and the contents of `files`; the result is kept under `root`.

    One note for all of them, not one a file: a folder of images has as many as there are rows.
    """
    stats = {name: (file.absolute(), file.stat()) for name, file in files.items()}
    seen = "".join(f"{name}|{path}|{stat.st_size}|{stat.st_mtime_ns}\n" for name, (path, stat) in stats.items())
    kept = root / "digests" / hashlib.sha256(seen.encode("utf-8", "surrogateescape")).hexdigest()
    if kept.exists() and len(known := kept.read_text()) == 64:
        return known
    found = hashlib.sha256()
    for name, file in files.items():
        found.update(os.fsencode(name) + b"\0")
        with file.open("rb") as stream:
            found.update(hashlib.file_digest(stream, "sha256").digest())
    _keep(kept, found.hexdigest())
    return found.hexdigest()


def one(file: Path, suffix: str, root: Path) -> str:
    """Of one file: its bytes and its suffix, which says how they are read."""
    return digest(file, root) + suffix


def _keep(kept: Path, found: str) -> None:
    kept.parent.mkdir(parents=True, exist_ok=True)
    beside = kept.with_name(f"{kept.name}.{os.getpid()}")
    beside.write_text(found)
    beside.replace(kept)
