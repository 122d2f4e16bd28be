"""DeepSpeed's operators, compiled on their first use: by one process at a time, whatever killed the one before.

torch marks a build under way by a file, which a killed process leaves behind; every later start would wait for it, for ever
and without a word.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

LOOK_EVERY = 0.5
"""Seconds between two looks whether a build of somebody else's is over."""


@contextmanager
def building(operator: str) -> Iterator[None]:
    """Within it, the operator of that name may be loaded, and compiled if need be."""
    from filelock import FileLock
    from torch.utils.cpp_extension import _get_build_directory

    folder = Path(_get_build_directory(operator, verbose=False))
    with FileLock(f"{folder}.peftkit.lock"):  # the system's: it ends with the process that holds it
        mark = folder / "lock"
        while mark.exists() and _is_worked_in(folder):
            time.sleep(LOOK_EVERY)
        mark.unlink(missing_ok=True)
        yield


def _is_worked_in(folder: Path) -> bool:
    """Whether a compiler of another program runs there."""
    for process in psutil.process_iter():
        try:
            if process.cwd() == str(folder.resolve()):
                return True
        except psutil.Error:
            continue
    return False
