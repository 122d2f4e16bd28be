"""The words of `peftkit jobs`, `watch`, `cancel` and `logs`: what is refused, and that none of them imports torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from peftkit.cli import main as cli
from peftkit.run_folder import RunFolder
from peftkit.status import Status, write_status


@pytest.fixture(autouse=True)
def _own_ledger(tmp_path, monkeypatch):
    monkeypatch.setenv("PEFTKIT_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["watch", "/nowhere"], "neither a run's folder nor a job's number"),
        (["watch", "4711"], "job 4711 was not submitted by peftkit"),
        (["watch", "4711", "--every", "0"], "--every 0: a number above 0"),
        (["logs", "4711", "--process", "x"], "--process"),
        (["cancel"], "required: RUN|JOB"),
        (["cancel", "1; rm -rf /"], "neither a run's folder nor a job's number"),
        (["jobs", "--jsn"], "did you mean '--json'"),
    ],
)
def test_wrong_words_are_refused(words, told, capsys):
    assert cli.main(words) == 2
    assert told in capsys.readouterr().err


def test_no_jobs(capsys):
    assert cli.main(["jobs"]) == 0
    assert capsys.readouterr().out == "no jobs: peftkit submit makes one\n"
    assert cli.main(["jobs", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"jobs": [], "cancelled": [], "problem": ""}


def test_how_a_run_ended_is_the_exit_code(tmp_path, capsys):
    write_status(RunFolder(tmp_path).status, Status("stopped", step=3, steps=9, checkpoint=3, reason="USR1", job=""))
    assert cli.main(["watch", str(tmp_path)]) == 75
    assert "USR1; step 3 of 9 is saved" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["jobs", "watch", "logs"])
def test_they_need_no_torch(command, tmp_path):
    write_status(RunFolder(tmp_path).status, Status("done", job=""))
    words = [command] if command == "jobs" else [command, str(tmp_path)]
    script = (
        "import sys; from peftkit.cli.main import main; sys.exit(main(sys.argv[1:]) + 40 * ('torch' in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script, *words], env=os.environ, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
