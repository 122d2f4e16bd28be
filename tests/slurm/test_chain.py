"""Scripts of what follows a run: a node of its own, the same software, and nothing in a command that a shell would run."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from pydantic import ValidationError

from peftkit.config.read import read
from peftkit.config.slurm import Slurm
from peftkit.errors import ConfigError
from peftkit.slurm.chain import follower_script, follower_words
from peftkit.slurm.script import Place

RUN = Path("/work/runs/a b")
PLACE = Place(RUN, Path("/work"), "/usr/bin/python3", "token.1")


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("eval test.jsonl", ["eval", str(RUN), "test.jsonl"]),
        ("eval 'my rows.jsonl' --by topic", ["eval", str(RUN), "my rows.jsonl", "--by", "topic"]),
        ("export merged", ["export", str(RUN), "--to", "merged"]),
        ("export --to adapter", ["export", str(RUN), "--to", "adapter"]),
        ("export", ["export", str(RUN)]),
    ],
)
def test_the_run_is_filled_in(command, words):
    assert follower_words(command, RUN) == words


def test_it_waits_for_success_on_one_node_with_the_runs_software():
    slurm = Slurm(
        nodes=4, gpus_per_node=8, nodelist="n[1-4]", exclusive=True, partition="gpu", modules=["cuda"], time="4h"
    )
    text = follower_script(slurm, PLACE, "export merged", after="123")
    options = [line.removeprefix("#SBATCH --") for line in text.splitlines() if line.startswith("#SBATCH")]
    assert {"nodes=1", "gpus-per-node=1", "dependency=afterok:123", "partition=gpu", "time=04:00:00"} <= set(options)
    assert not [option for option in options if option.startswith(("signal", "nodelist", "exclusive"))]
    assert "module load cuda" in text
    assert "dependency" not in follower_script(slurm, PLACE, "export merged")


@pytest.mark.parametrize(
    "settings", [{}, {"gpus_per_node": 0, "container": "a.sif"}, {"container": "a", "container_kind": "pyxis"}]
)
def test_bash_can_read_it(settings):
    text = follower_script(Slurm.model_validate(settings), PLACE, "eval 'it''s.jsonl'", "1")
    done = subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_nothing_in_a_command_is_run_by_the_shell(tmp_path):
    evil = '$(touch evil) `touch evil` ; touch evil %s %(x)s \\ "'
    place = Place(tmp_path, tmp_path, "echo", "token.1")
    text = follower_script(Slurm(gpus_per_node=0), place, f"eval '{evil}'")
    done = subprocess.run(["bash"], input=text, text=True, capture_output=True, cwd=tmp_path, check=False)
    assert done.stdout.strip() == f"-m peftkit eval {tmp_path} {evil}"
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("evla x", "is none of the commands that follow a run"),
        ("train", "is none of the commands"),
        ("eval", "names no rows"),
        ("predict rows.jsonl", "says not where the answers go"),
        ("eval 'x", "cannot be read"),
        ("", "is none of the commands"),
    ],
)
def test_what_cannot_follow_is_refused_before_anything_is_submitted(command, told):
    with pytest.raises((ConfigError, ValidationError), match=told):
        read([f"--slurm.then=[{command!r}]"])
