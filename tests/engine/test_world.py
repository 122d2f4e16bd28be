"""Processes: who they are, and that one process may train again and again."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from typing import Any

import pytest
import torch

from peftkit.engine.state import capture
from peftkit.engine.world import World, identity, joined, share_cores
from tests.engine.odd import Odd, furthest, opened, train


def test_a_process_is_who_its_launcher_says(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert identity() == World(process=0, processes=1, local=0) and identity().first
    for name, value in (("RANK", "5"), ("WORLD_SIZE", "8"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    assert identity() == World(process=5, processes=8, local=1) and not identity().first


def test_one_process_may_train_again_and_again() -> None:
    """As a notebook does, and with the same result."""
    found = []
    for zero in ("zero2", "zero3", "zero2", "zero3"):
        with joined() as world:
            engine = opened(Odd(), zero, world)
            train(engine, range(2), world)
            found.append(capture(engine).weights)
            engine.close()
    assert all(furthest(weights, found[0]) < 1e-7 for weights in found)


def test_a_world_of_one_tells_itself_everything(alone: World) -> None:
    assert alone.sum(1.5, 2) == [1.5, 2.0]
    assert alone.gather({"a": 1}) == [{"a": 1}]
    assert alone.share("said") == "said"


def test_processes_share_the_cores_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    cores, threads = len(os.sched_getaffinity(0)), torch.get_num_threads()
    set_to: list[Any] = []
    monkeypatch.setattr(torch, "set_num_threads", set_to.append)
    share_cores(World(0, 2, 0))
    assert set_to == [], "OMP_NUM_THREADS is set in the tests: the user decides"
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    share_cores(World(0, 1, 0))
    share_cores(World(0, 1000, 0))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    share_cores(World(0, 1000, 0))
    assert set_to == [cores, 1, cores]
    assert torch.get_num_threads() == threads


def test_a_process_that_is_alone_needs_nobodys_port() -> None:
    """One that a training in Python has started inherits the port at which that one listens itself."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        script = "from peftkit.engine.world import joined\nwith joined() as world: print(world.processes)"
        environment = os.environ | {"MASTER_PORT": str(taken.getsockname()[1])}
        done = subprocess.run(
            [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=120
        )
    assert done.stdout.split() == ["1"], done.stderr
