"""A process that dies, hangs or fails: the others end soon, each says why in its own file, and the first cause is told."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from peftkit.run_folder import RunFolder
from peftkit.status import Failure, first_cause, read_failures, read_status
from tests.flows.interrupted import Runs
from tests.forked import Process

pytestmark = pytest.mark.launch
SOON = 60
"""Far below the half hour that a collective waits."""


def failing(runs: Runs, name: str, process: int, do: str, *more: str) -> list[Process]:
    hook = {"PEFTKIT_TEST_HOOK": "tests.flows.hooks:at_a_step", "TEST_PROCESS": f"{process}", "TEST_STEP": "2"}
    return runs.start(name, *more, **hook, TEST_DO=do)


def failures(out: Path) -> dict[int, Failure]:
    return {failure.process: failure for failure in read_failures(RunFolder(out), 0)}


def test_an_error_on_one_process_is_what_the_others_tell(runs: Runs) -> None:
    out, world = runs.out("error"), failing(runs, "error", 1, "raise")
    assert [one.wait(SOON) for one in world] == [1, 1]
    found = failures(out)
    assert (found[1].kind, found[1].type, found[1].message, found[1].step) == ("code", "RuntimeError", "boom", 2)
    assert found[0].kind == "peer" and "hooks.py" in found[1].traceback
    assert "at step 2: RuntimeError: boom" in world[0].said() and "Traceback" not in world[0].said()
    status = read_status(out / "status.json")
    assert status and status.state == "failed" and "process 1" in status.reason and "boom" in status.reason
    assert [one.wait() for one in runs.start("error")] == [0, 0]
    assert runs.is_whole("error")


@pytest.mark.parametrize("process", [0, 1])
def test_a_process_that_is_killed_is_named(process: int, runs: Runs) -> None:
    name = f"killed-{process}"
    world = failing(runs, name, process, f"{int(signal.SIGKILL)}")
    assert world[process].wait(SOON) == -signal.SIGKILL
    assert world[1 - process].wait(SOON) == 1
    told = f"process {process} ended without a word"
    assert told in world[1 - process].said() and "Traceback" not in world[1 - process].said()
    status = read_status(runs.out(name) / "status.json")
    assert status and status.state == "failed" and told in status.reason
    assert first_cause(list(failures(runs.out(name)).values()))


@pytest.mark.parametrize("process", [0, 1])
def test_a_process_that_is_frozen_is_noticed_by_its_silence(process: int, runs: Runs) -> None:
    name = f"frozen-{process}"
    world = failing(runs, name, process, f"{int(signal.SIGSTOP)}", "--guard.silence", "8s")
    assert world[1 - process].wait(SOON) == 1
    said = world[1 - process].said()
    assert f"error: process {process}" in said and "gave no sign of life for 8 s" in said
    world[process].kill()
    status = read_status(runs.out(name) / "status.json")
    assert status and status.state == "failed" and "gave no sign of life" in status.reason


@pytest.mark.parametrize("process", [0, 1])
def test_a_process_that_hangs_is_noticed_and_says_where(process: int, runs: Runs) -> None:
    name = f"hung-{process}"
    world = failing(runs, name, process, "sleep", "--guard.timeout", "8s")
    assert [one.wait(SOON) for one in world] == [1, 1]
    found = failures(runs.out(name))
    assert (
        found[process].kind == "code" and "hooks.py" in found[process].message and "do_it" in found[process].traceback
    )
    assert found[1 - process].kind == "peer", found[1 - process].traceback
    status = read_status(runs.out(name) / "status.json")
    assert status and "hooks.py" in status.reason and f"process {process}" in status.reason


def test_a_slow_training_is_not_taken_for_a_hung_one(runs: Runs) -> None:
    """Each step takes a tenth of a second, and the whole longer than one may come no further."""
    world = runs.start("slow", "--guard.timeout", "5s", "--steps", "60", PEFTKIT_TEST_HOOK="tests.flows.hooks:slowly")
    start = time.monotonic()
    assert [one.wait() for one in world] == [0, 0], world[0].said()
    assert time.monotonic() - start > 5
