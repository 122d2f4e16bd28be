"""What follows from how an attempt ended: from the run's own files, not from exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from peftkit.run_folder import RunFolder
from peftkit.slurm.verdict import Ending, attempts, decide
from peftkit.status import Failure, Status, write_failure, write_status

DONE = Status("done", step=9, steps=9)
SAVED = Status("stopped", step=5, steps=9, checkpoint=5)
RUNNING = Status("running", step=5, steps=9)
OURS = Failure(1, 2, 0, kind="code", type="ValueError", message="boom", time=1)
THEIRS = Failure(0, 2, 0, kind="peer", type="RuntimeError", message="connection closed by peer", time=0)


@pytest.mark.parametrize(
    ("ending", "word", "code", "kind"),
    [
        (Ending(0, status=DONE), "done", 0, "done"),
        (Ending(143, lost="node2", status=DONE), "done", 0, "done"),
        # srun's code is 0 although a node failed, or nothing was ever said
        (Ending(0, lost="node2", status=RUNNING), "again", 0, "node"),
        (Ending(0), "again", 0, "unknown"),
        (Ending(1, "USR1", status=SAVED, advanced=True), "again", 0, "time limit"),
        (Ending(1, "", status=SAVED, advanced=True), "again", 0, "time limit"),
        (Ending(1, "TERM", status=SAVED, state="COMPLETING"), "stopped", 75, "cancelled"),
        (Ending(1, "TERM", status=SAVED, state="CANCELLED"), "stopped", 75, "cancelled"),
        (Ending(1, "TERM", status=SAVED, state=""), "again", 0, "time limit"),
        (Ending(1, "", status=SAVED, by_hand=True), "stopped", 75, "stopped"),
        (Ending(143, "USR1", status=RUNNING), "again", 0, "time limit"),
        (Ending(1, failures=[THEIRS, OURS], status=RUNNING), "failed", 1, "code"),
        (Ending(1, failures=[replace(OURS, kind="data")]), "failed", 2, "data"),
        (Ending(1, "USR1", failures=[OURS], status=RUNNING), "failed", 1, "code"),
        # the others' errors follow from the node's
        (Ending(1, failures=[OURS], lost="node2", status=RUNNING), "again", 0, "node"),
        (Ending(1, failures=[replace(OURS, kind="data")], lost="node2", status=RUNNING), "failed", 2, "data"),
        (Ending(1, failures=[THEIRS], status=RUNNING), "again", 0, "peer"),
        (Ending(143, log="slurmstepd: error: Detected 1 oom-kill event(s)"), "failed", 1, "memory"),
        (Ending(168, log="srun: error: Task launch for 1.0 failed on node node2: Job credential revoked"), "again", 0, "node"),
        (Ending(1, log="0: peftkit: wrong settings: --optim.lr"), "failed", 2, "settings"),
        (Ending(1, log="OSError: EADDRINUSE"), "again", 0, "node"),
        (Ending(1, log="No module named peftkit"), "failed", 1, "code"),
        (Ending(1, preflight=["node2 has no torch"]), "failed", 1, "node"),
        (Ending(1, preflight=["node2 is silent"], lost="node2"), "again", 0, "node"),
    ],
)  # fmt: skip
def test_what_follows(ending: Ending, word: str, code: int, kind: str) -> None:
    found = decide(ending, max_requeues=3)
    assert (found.word, found.code, found.kind) == (word, code, kind), found


def test_turns_that_get_further_have_no_end_and_those_that_do_not_have() -> None:
    turn = Ending(1, "USR1", status=SAVED, advanced=True, fruitless=50)
    assert decide(turn, max_requeues=0).word == "again"
    stuck = replace(turn, advanced=False, fruitless=2)
    assert decide(stuck, max_requeues=3).word == "again"
    assert decide(replace(stuck, fruitless=3), max_requeues=3).word == "failed"
    assert "no checkpoint was written in 4 attempts" in decide(replace(stuck, fruitless=3), max_requeues=3).why


def asked(folder: RunFolder, event: str, attempt: int, *words: str) -> str:
    command = [sys.executable, "-m", "peftkit.slurm.verdict", event, str(folder.path), str(attempt), "7", *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_the_script_asks_it(tmp_path: Path) -> None:
    """Three attempts: stopped and saved, a node lost, failed; what another attempt or job left says nothing of this one."""
    folder = RunFolder(tmp_path / "run")
    asked(folder, "begin", 0, "node1", "node2")
    write_status(folder.status, replace(SAVED, job="7"))
    folder.checkpoint(5).mkdir(parents=True)
    assert asked(folder, "end", 0, "--code", "1", "--signal", "USR1") == "again"
    asked(folder, "begin", 1, "node1", "node2")
    assert asked(folder, "end", 1, "--code", "0", "--lost", "node2", "--max-requeues", "1") == "again"
    asked(folder, "begin", 2, "node1", "node3")
    write_status(folder.status, replace(DONE, job="8", attempt=2))
    write_failure(folder, replace(OURS, attempt=2))
    assert asked(folder, "end", 2, "--code", "0", "--max-requeues", "1") == "1"
    rows = attempts(folder)
    assert [row["event"] for row in rows] == ["begin", "end"] * 3
    assert [(row["verdict"], row["kind"], row["advanced"]) for row in rows if row["event"] == "end"] == [
        ("again", "time limit", True), ("again", "node", False), ("failed", "code", False)
    ]  # fmt: skip
    assert rows[2]["nodes"] == ["node1", "node2"] and "boom" in rows[5]["why"]


def test_an_attempt_that_cannot_be_noted_is_judged_all_the_same(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    write_status(folder.status, replace(DONE, job="7"))
    folder.attempts.mkdir(parents=True)  # as on a disk that takes no more
    command = [sys.executable, "-c", UNNOTED, str(folder.path)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "0\n"


UNNOTED = """
import sys
from peftkit.slurm import verdict
verdict.attempts = lambda folder: []
sys.exit(verdict.main(["end", sys.argv[1], "0", "7", "--code", "0"]))
"""


def test_half_a_row_is_passed_over(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.slurm.mkdir()
    folder.attempts.write_text(json.dumps({"event": "begin", "attempt": 0}) + '\n{"event": "en')
    assert len(attempts(folder)) == 1
