"""A folder of encoded rows that is built once and is byte for byte what was written, or is built again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

from peftkit.cache import once
from peftkit.errors import DataError

MANIFEST = "manifest.json"


def build_once(folder: Path, build: Callable[[Path], None]) -> None:
    """Make sure that `folder` holds what `build` writes into the empty folder that it is given.

    No process group is needed: of processes that start at the same time one builds, and the others wait at a lock file.
    """
    try:
        once(folder, partial(_build_and_seal, build), is_intact)
    except OSError as problem:
        raise DataError(f"--data.cache: {folder.parent} cannot be written ({problem.strerror or problem})") from problem


def is_intact(folder: Path) -> bool:
    """Whether every file is there as it was written."""
    try:
        digests: dict[str, str] = json.loads((folder / MANIFEST).read_text())
        return all(_digest(folder / name) == sha for name, sha in digests.items())
    except (OSError, ValueError, AttributeError):
        return False


def _build_and_seal(build: Callable[[Path], None], folder: Path) -> None:
    build(folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    digests = {str(path.relative_to(folder)): _digest(path) for path in files}
    (folder / MANIFEST).write_text(json.dumps(digests, indent=1))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
