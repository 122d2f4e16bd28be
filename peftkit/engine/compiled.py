"""DeepSpeed's operators, compiled on their first use: by one process at a time, whatever killed the one before.

torch marks a build under way by a file, which a killed process leaves behind; every later start would wait for it, for ever
and without a word.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, wraps
from pathlib import Path
from typing import Any

import psutil

Function = Callable[..., Any]

LOOK_EVERY = 0.5
"""Seconds between two looks whether a build of somebody else's is over."""


def ready_muon() -> None:
    """Import DeepSpeed's Muon with its kernels compiled when they are called, not when they are defined.

    DeepSpeed asks of every optimizer whether it is a Muon, and would load torch's whole compiler for that: 0.7 s, 80 MB.
    """
    from deepspeed.runtime import compiler

    at_once = compiler.compile
    compiler.compile = lambda: _when_called(at_once())
    try:
        import deepspeed.runtime.zero.muon.original_muon  # noqa: F401
    except ImportError:  # DeepSpeed goes on without it, too
        return
    finally:
        compiler.compile = at_once


def _when_called(compiling: Callable[[Function], Function]) -> Callable[[Function], Function]:
    def decorate(function: Function) -> Function:
        compiled = cache(lambda: compiling(function))
        return wraps(function)(lambda *values, **named: compiled()(*values, **named))

    return decorate


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
