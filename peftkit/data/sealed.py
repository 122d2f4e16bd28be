"""A folder of encoded rows that is built once and is byte for byte what was written, or is built again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatch
from functools import partial
from pathlib import Path

from peftkit.cache import once
from peftkit.errors import DataError

MANIFEST, OUTSIDE = "manifest.json", "outside.json"


def build_once(folder: Path, build: Callable[[Path], None]) -> None:
    """Make sure that `folder` holds what `build` writes into the empty folder that it is given.

    No process group is needed: of processes that start at the same time one builds, and the others wait at a lock file.
    """
    try:
        once(folder, partial(_build_and_seal, build), is_intact)
    except OSError as problem:
        raise DataError(f"--data.cache: {folder.parent} cannot be written ({problem.strerror or problem})") from problem


def is_intact(folder: Path) -> bool:
    """Whether every file is there as it was written, and what it was made of outside is as it was read."""
    try:
        digests: dict[str, str] = json.loads((folder / MANIFEST).read_text())
        outside = json.loads((folder / OUTSIDE).read_text()) if OUTSIDE in digests else {}
        return all(_digest(folder / name) == sha for name, sha in digests.items()) and outside == _seen(outside)
    except (OSError, ValueError, AttributeError):
        return False


def sealed_digest(folder: Path, patterns: Sequence[str]) -> str:
    """Of the files in a folder whose names match one of the patterns, and of the sizes of what they were made of outside."""
    digests: dict[str, str] = json.loads((folder / MANIFEST).read_text())
    outside = json.loads((folder / OUTSIDE).read_text()) if OUTSIDE in digests else {}
    parts = {name: sha for name, sha in digests.items() if any(fnmatch(name, pattern) for pattern in patterns)}
    sizes = {name: seen and seen[0] for name, seen in outside.items()}
    return hashlib.sha256(json.dumps([parts, sizes], sort_keys=True).encode()).hexdigest()


def note_outside(folder: Path, files: Iterable[str]) -> None:
    """Keep the sizes and times of files that rows only name (images, sounds): a table's bytes say nothing of them."""
    (folder / OUTSIDE).write_text(json.dumps(_seen(files)))


def _seen(files: Iterable[str]) -> dict[str, list[int] | None]:
    """By the name under which a file was read; None where there is none."""
    found: dict[str, list[int] | None] = {}
    for name in files:
        try:
            stat = Path(name).stat()
        except (OSError, ValueError):
            found[name] = None
        else:
            found[name] = [stat.st_size, stat.st_mtime_ns]
    return found


def _build_and_seal(build: Callable[[Path], None], folder: Path) -> None:
    build(folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    digests = {str(path.relative_to(folder)): _digest(path) for path in files}
    (folder / MANIFEST).write_text(json.dumps(digests, indent=1))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
