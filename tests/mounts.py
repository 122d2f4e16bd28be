"""Small disks for a test: one that is soon full, one that may not be written. They need a Linux machine's root."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A file system in memory of `size` (such as 900k), mounted on `folder`."""
    with _mounted(folder, "-t", "tmpfs", "-o", f"size={size}", "tmpfs"):
        yield folder


@contextmanager
def read_only(folder: Path) -> Iterator[Path]:
    """What is in `folder` can be read there, and not written."""
    with _mounted(folder, "--bind", f"{folder}"):
        subprocess.run(["mount", "-o", "remount,bind,ro", f"{folder}"], check=True)
        yield folder


@contextmanager
def _mounted(folder: Path, *words: str) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(["mount", *words, f"{folder}"], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"nothing can be mounted here, so no disk can be filled: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", f"{folder}"], check=True)
