"""A build that was killed does not stop the next start, and one that is under way is waited for."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from threading import Thread

import pytest

from peftkit.engine import compiled
from peftkit.engine.compiled import _when_called, building


@pytest.fixture
def mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file by which torch says that an operator is being built."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", f"{tmp_path}")
    (tmp_path / "cpu_adam").mkdir()
    return tmp_path / "cpu_adam/lock"


def test_what_a_killed_build_left_is_taken_away(mark: Path) -> None:
    mark.touch()
    with building("cpu_adam"):
        assert not mark.exists()


def test_a_build_of_somebody_elses_is_waited_for(mark: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "LOOK_EVERY", 0.01)
    mark.touch()
    entered: list[float] = []

    def enter() -> None:
        with building("cpu_adam"):
            entered.append(time.monotonic())

    with subprocess.Popen(["sleep", "100"], cwd=mark.parent) as compiler:
        waiting = Thread(target=enter)
        waiting.start()
        time.sleep(0.5)
        assert mark.exists() and not entered
        compiler.kill()
        compiler.wait()
        waiting.join(60)
    assert entered and not mark.exists()


def test_muon_is_known_and_the_compiler_is_not_loaded_for_it() -> None:
    script = """
import sys
from peftkit.engine.open import ready_deepspeed
from peftkit.engine.compiled import ready_muon
ready_deepspeed()
ready_muon()
from deepspeed.runtime import compiler
from deepspeed.runtime.zero.muon.muon_optimizer import MuonWithAuxAdam
import torch
print("torch._inductor.compile_fx" in sys.modules, compiler.compile() is torch.compile)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.split() == ["False", "True"], done.stderr


def test_a_function_is_compiled_once_when_it_is_called() -> None:
    done: list[Callable[[int], int]] = []

    def compiling(function: Callable[[int], int]) -> Callable[[int], int]:
        done.append(function)
        return lambda value: function(value) + 1

    def double(value: int) -> int:
        return 2 * value

    later = _when_called(compiling)(double)
    assert not done
    assert [later(1), later(value=2)] == [3, 5]
    assert done == [double]
