"""Where what is worth keeping between runs lies: encoded rows, converted models."""

from __future__ import annotations

import os
from pathlib import Path


def cache_root(path: Path | None) -> Path:
    """`path`, else $PEFTKIT_CACHE, else ~/.cache/peftkit."""
    return (path or Path(os.environ.get("PEFTKIT_CACHE") or "~/.cache/peftkit")).expanduser()
