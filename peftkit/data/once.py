"""A folder that is built once, by whichever process comes first, and is complete or does not exist.

No process group is needed: processes that start at the same time, on one machine or on several with a shared file
system, wait at a lock file. A folder whose files are not what they were is built again.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from peftkit.errors import DataError

MANIFEST = "manifest.json"


def build_once(folder: Path, build: Callable[[Path], None]) -> None:
    """Make sure that `folder` holds what `build` writes into the empty folder it is given."""
    if is_intact(folder):
        return
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder.with_name(folder.name + ".lock"))
        with lock:
            if not is_intact(folder):
                _build(folder, build)
    except OSError as problem:
        raise DataError(f"--data.cache: {folder.parent} cannot be written ({problem.strerror or problem})") from problem


def is_intact(folder: Path) -> bool:
    """Whether every file is there, byte for byte as it was written."""
    try:
        digests: dict[str, str] = json.loads((folder / MANIFEST).read_text())
        return all(digest(folder / name) == sha for name, sha in digests.items())
    except (OSError, ValueError, AttributeError):
        return False


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _build(folder: Path, build: Callable[[Path], None]) -> None:
    partial = folder.with_name(folder.name + ".partial")
    for left_behind in (partial, folder):
        shutil.rmtree(left_behind, ignore_errors=True)
    partial.mkdir()
    try:
        build(partial)
        files = sorted(path for path in partial.rglob("*") if path.is_file())
        digests = {str(path.relative_to(partial)): digest(path) for path in files}
        (partial / MANIFEST).write_text(json.dumps(digests, indent=1))
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
