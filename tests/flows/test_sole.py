"""Two trainings do not write into one folder."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from peftkit.engine.world import Alone
from peftkit.errors import ConfigError
from peftkit.flows import sole as flow
from peftkit.flows.sole import sole_writer
from peftkit.run_folder import RunFolder
from peftkit.status import read_status
from tests.flows.interrupted import Runs, wait_for
from tests.launch import ROOT, environment

ONLY = Alone(0, 1, 0, torch.device("cpu"))
HOLDER = """
import os, sys, time
from pathlib import Path
from peftkit.flows.sole import sole_writer
from peftkit.run_folder import RunFolder
from tests.flows.test_sole import ONLY

with sole_writer(RunFolder(Path(sys.argv[1])), ONLY):
    child = os.fork()
    if child:
        print(child, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A process that holds the folder, and a child of its own that lives on."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment()
    ) as process:
        assert process.stdout
        child = int(process.stdout.readline())
        yield process, child
        process.kill()
        os.kill(child, signal.SIGKILL)


def test_who_writes_there_is_named(
    holder: tuple[subprocess.Popen[str], int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flow, "HERE", 0.5)
    with pytest.raises(ConfigError) as told, sole_writer(RunFolder(tmp_path), ONLY):
        pass
    words = str(told.value)
    assert f"process {holder[0].pid} on {socket.gethostname()}" in words
    assert f"touch {tmp_path}/stop" in words and f"rm {tmp_path}/lock" in words


def test_a_killed_one_holds_nothing_and_nor_do_its_children(
    holder: tuple[subprocess.Popen[str], int], tmp_path: Path
) -> None:
    holder[0].kill()
    holder[0].wait()
    with sole_writer(RunFolder(tmp_path), ONLY):
        assert (tmp_path / "lock").read_text() == f"{os.getpid()} {socket.gethostname()}\n"


def test_a_host_that_is_gone_is_waited_for_longer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS 4 keeps the locks of such a one for a while."""
    (tmp_path / "lock").write_text("7 elsewhere\n")
    tries = iter([errno.EAGAIN, errno.EACCES, 0])

    def locked(*words: object) -> None:
        if number := next(tries):
            raise OSError(number, "taken")

    monkeypatch.setattr(fcntl, "lockf", locked)
    monkeypatch.setattr(flow, "HERE", 0.0)
    with sole_writer(RunFolder(tmp_path), ONLY):
        assert next(tries, None) is None


def test_a_file_system_without_locks_is_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*words: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", refused)
    with sole_writer(RunFolder(tmp_path), ONLY):
        assert (tmp_path / "lock").read_text() == ""


def test_a_link_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("dear")
    (tmp_path / "lock").symlink_to("mine")
    with sole_writer(RunFolder(tmp_path), ONLY):
        assert (tmp_path / "mine").read_text() == "dear"


@pytest.mark.launch
def test_a_second_training_leaves_the_first_one_as_it_is(runs: Runs) -> None:
    hook = {"PEFTKIT_TEST_HOOK": "tests.flows.hooks:at_a_step"}
    first = runs.start("shared", **hook, TEST_PROCESS="0", TEST_STEP="5", TEST_DO="sleep")
    wait_for(runs.out("shared") / "metrics.jsonl", '"step": 5,')
    before = (runs.out("shared") / "status.json").read_bytes()
    second = runs.start("shared", PEFTKIT_TEST_HOOK="tests.flows.hooks:impatient")
    assert [one.wait() for one in second] == [2, 2], second[0].said()
    said = second[0].said()
    assert f"process {first[0].pid} on" in said and "waiting up to 1 s" in said and "Traceback" not in said
    assert (runs.out("shared") / "status.json").read_bytes() == before, "nothing of it was touched"
    assert not (runs.out("shared") / "errors").exists()
    for one in first:
        one.kill()
    assert [one.wait() for one in first] == [-signal.SIGKILL] * 2
    assert [one.wait() for one in runs.start("shared")] == [0, 0]
    status = read_status(runs.out("shared") / "status.json")
    assert runs.is_whole("shared") and status and status.attempt == 1
