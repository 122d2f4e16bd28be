"""`peftkit version`: of peftkit and of what it stands on."""

from __future__ import annotations

import platform
import sys
from importlib import metadata

from peftkit.cli.words import Parser

LIBRARIES = (
    "peftkit",
    "torch",
    "transformers",
    "deepspeed",
    "peft",
    "bitsandbytes",
    "datasets",
    "safetensors",
    "pydantic",
)


def run(words: list[str]) -> int:
    """A line for each library, read from what is installed without importing it."""
    try:
        Parser("version", "Versions of peftkit and of what it stands on.").parse_args(words)
    except SystemExit as after_help:
        return int(after_help.code or 0)
    for name in LIBRARIES:
        sys.stdout.write(f"{name:14} {_version(name)}\n")
    sys.stdout.write(f"{'python':14} {platform.python_version()} on {platform.system()} {platform.machine()}\n")
    return 0


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "run from its sources" if name == "peftkit" else "not installed"
