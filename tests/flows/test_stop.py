"""A training that is asked to stop saves on one step, ends with 75, and goes on later as if nothing had been."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from peftkit.run_folder import RunFolder
from peftkit.status import read_status
from tests.flows.interrupted import STEPS, Runs, wait_for
from tests.forked import free_port
from tests.launch import BIN, ROOT, environment

pytestmark = pytest.mark.launch


@pytest.mark.parametrize(
    ("number", "process", "step"),
    [(signal.SIGTERM, 1, 2), (signal.SIGINT, 0, 3), (signal.SIGUSR1, 1, 5), (signal.SIGUSR2, 0, 8)],
)
def test_a_signal_to_any_process_stops_all_on_one_step(number: int, process: int, step: int, runs: Runs) -> None:
    """After step 3 an evaluation is due, which is broken off; after step 9, too: the resumed run owes its scores."""
    stopped = step if step == 3 else step + 1
    name = f"signal-{number}"
    hook = {"PEFTKIT_TEST_HOOK": "tests.flows.hooks:at_a_step", "TEST_PROCESS": f"{process}", "TEST_STEP": f"{step}"}
    world = runs.start(name, **hook, TEST_DO=f"{int(number)}")
    assert [one.wait() for one in world] == [75, 75], world[0].said()
    status = read_status(runs.out(name) / "status.json")
    assert status and (status.state, status.attempt, status.checkpoint) == ("stopped", 0, stopped)
    assert status.reason == f"{signal.Signals(number).name} to process {process}"
    said = world[0].said()
    assert f"stopped: after step {stopped} of {STEPS}" in said and "--resume" in said and "Traceback" not in said
    assert "stopped" not in world[1].said(), "the first process speaks for all"
    world = runs.start(name)
    assert [one.wait() for one in world] == [0, 0], world[0].said()
    assert runs.is_whole(name)
    status = read_status(runs.out(name) / "status.json")
    assert status and (status.state, status.attempt) == ("done", 1)


@pytest.mark.parametrize("batch", [2, 5])
def test_a_signal_in_an_evaluation_does_not_wait_for_its_end(batch: int, runs: Runs) -> None:
    """The evaluation after step 3 has six batches, three a process; the second one's third batch would be the sixth."""
    name = f"evaluation-{batch}"
    hook = {"PEFTKIT_TEST_HOOK": "tests.flows.hooks:in_an_evaluation", "TEST_PROCESS": "1", "TEST_STEP": f"{batch}"}
    world = runs.start(name, **hook, TEST_DO=f"{int(signal.SIGTERM)}")
    assert [one.wait() for one in world] == [75, 75], world[0].said()
    step = 3 if batch == 2 else 6
    saved = runs.out(name) / f"checkpoints/step-{step:06d}/progress.json"
    assert json.loads(saved.read_text())["scored"] == step - 3, "it is not taken for scored"
    assert [one.wait() for one in runs.start(name)] == [0, 0]
    assert runs.is_whole(name)


def test_a_stop_file_stops_it_and_is_gone_at_the_next_start(runs: Runs) -> None:
    world = runs.start("file", PEFTKIT_TEST_HOOK="tests.flows.hooks:slowly")
    wait_for(runs.out("file") / "metrics.jsonl", '"step": 1,')
    (runs.out("file") / "stop").touch()
    assert [one.wait() for one in world] == [75, 75], world[0].said()
    assert f"there is a file {runs.out('file')}/stop" in world[0].said()
    assert [one.wait() for one in runs.start("file")] == [0, 0]
    assert runs.is_whole("file") and not (runs.out("file") / "stop").exists()


def test_deadlines_are_kept(runs: Runs) -> None:
    world = runs.start("deadline", "--checkpoint.deadline", "1s")
    assert [one.wait() for one in world] == [75, 75], world[0].said()
    assert "--checkpoint.deadline 1 s is near" in world[0].said()
    never = ["--checkpoint.deadline", "null"]
    world = runs.start("deadline", *never, PEFTKIT_END_TIME=f"{time.time() + 20:.0f}", PEFTKIT_ATTEMPT="7")
    assert [one.wait() for one in world] == [75, 75], world[0].said()
    status = read_status(runs.out("deadline") / "status.json")
    assert status and (status.attempt, status.reason) == (7, "the end of the job's time is near")
    assert [one.wait() for one in runs.start("deadline", *never)] == [0, 0]
    assert runs.is_whole("deadline")


def test_a_second_signal_ends_at_once_and_leaves_the_checkpoints_good(runs: Runs) -> None:
    """The first one comes after step 5, when process 1 begins to sleep: they cannot meet to save."""
    hook = {
        "PEFTKIT_TEST_HOOK": "tests.flows.hooks:at_a_step",
        "TEST_PROCESS": "1",
        "TEST_STEP": "5",
        "TEST_DO": "sleep",
    }
    world = runs.start("twice", **hook)
    wait_for(runs.out("twice") / "metrics.jsonl", '"step": 5,')
    for _ in range(2):
        for one in world:
            one.kill(signal.SIGTERM)
        time.sleep(2.5)
    assert [one.wait(30) for one in world] == [128 + signal.SIGTERM] * 2
    assert [path.name for path in sorted((runs.out("twice") / "checkpoints").iterdir())] == [
        "step-000003",
        "step-000004",
    ]
    assert [one.wait() for one in runs.start("twice")] == [0, 0]
    assert runs.is_whole("twice")


def test_before_the_first_step_there_is_nothing_to_save(runs: Runs) -> None:
    hook = {"PEFTKIT_TEST_HOOK": "tests.flows.hooks:in_the_beginning", "TEST_PROCESS": "0", "TEST_STEP": "0"}
    (alone,) = runs.start("early", processes=1, **hook, TEST_DO=f"{int(signal.SIGTERM)}")
    assert alone.wait() == 75 and "Traceback" not in alone.said()
    (alone,) = runs.start("early", processes=1, **hook, TEST_DO=f"{int(signal.SIGINT)}")
    assert alone.wait() == 130 and "interrupted" in alone.said()
    assert not (runs.out("early") / "checkpoints").exists()


def test_a_checkpoint_that_a_kill_left_between_two_names_is_found(runs: Runs) -> None:
    """Where a file system cannot exchange two names, the old folder has another one for a moment."""
    copied = RunFolder(shutil.copytree(runs.out("whole"), runs.out("between")))
    for step in copied.checkpoint_steps():
        copied.checkpoint(step).rename(copied.checkpoint(step).with_name(f"step-{step:06d}.old"))
    world = runs.start("between")
    assert [one.wait() for one in world] == [0, 0], world[0].said()
    assert f"going on from {copied.checkpoint(STEPS)}" in world[0].said()
    assert runs.is_whole("between") and not list(copied.checkpoints.glob("*.old"))


def test_what_is_passed_over_is_kept_aside(runs: Runs) -> None:
    """It may be another version's, or of help to whoever looks for what damaged it."""
    copied = RunFolder(shutil.copytree(runs.out("whole"), runs.out("aside")))
    (copied.checkpoint(STEPS) / "progress.json").write_text("{")
    world = runs.start("aside")
    assert [one.wait() for one in world] == [0, 0], world[0].said()
    assert "progress.json is damaged" in world[0].said()
    assert (copied.checkpoints / f"step-{STEPS:06d}.aside/progress.json").read_text() == "{"
    assert runs.is_whole("aside")


def test_a_launcher_that_has_gone_is_a_wish_to_stop(runs: Runs, tmp_path: Path) -> None:
    """DeepSpeed's, told to end, leaves its processes behind: they save and end by themselves."""
    words = ["--model", f"{runs.folder}/llama", "--data", f"{runs.folder}/chat.jsonl", "--out", f"{tmp_path}/run"]
    words += [
        "--strategy",
        "full",
        "--batch.total",
        "8",
        "--steps",
        "5000",
        "--eval.every",
        "5000",
        "--checkpoint.every",
        "5000",
    ]
    launcher = [str(BIN / "deepspeed"), "--num_accelerators", "2", "--master_port", f"{free_port()}"]
    with subprocess.Popen(
        [*launcher, str(ROOT / "launch/train.py"), *words],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT, env=environment(), start_new_session=True,
    ) as process:  # fmt: skip
        wait_for(tmp_path / "run/metrics.jsonl", '"step": 3,')
        process.terminate()
    wait_for(tmp_path / "run/status.json", '"stopped"')
    status = read_status(tmp_path / "run/status.json")
    assert status and "which started this process, has gone" in status.reason
    assert RunFolder(tmp_path / "run").checkpoint_steps() == [status.step]
