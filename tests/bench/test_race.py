"""The races' driver: a race runs, what it counts is right, and both runners do the same work."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bench import environments, race, runners, tree, workloads
from tests.bench.environments import Environment
from tests.bench.workloads import WORKLOADS, Place


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where models, rows and runs lie: nothing of them goes into the user's cache."""
    folder = tmp_path_factory.mktemp("bench")
    with pytest.MonkeyPatch.context() as patch:
        for module in (workloads, race, runners, environments):
            patch.setattr(module, "CACHE", folder)
        yield folder


def test_a_race_is_run_on_the_same_rows(kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    race.main(["tiny", "--rows", "24", "--runners", "peftkit,trainer"])
    told = capsys.readouterr().out
    assert "peftkit against trainer: " in told
    losses = told[told.index("loss of the first") :].split()
    pairs = [
        (float(losses[at - 1]), float(losses[at + 1].rstrip(";"))) for at, word in enumerate(losses) if word == "->"
    ]
    (ours, learnt), (theirs, learnt_too) = pairs
    assert abs(ours - theirs) < 1e-4, "the same tokens, mask and weights"
    assert abs(learnt - learnt_too) < 1e-3, "the same rate; adapters begin with other random numbers"
    assert not list((kept / "runs").iterdir())


def test_tokens_are_counted_as_the_model_sees_them(kept: Path) -> None:
    from transformers import AutoTokenizer

    where = workloads.place(WORKLOADS["tiny"], 24, 42)
    tokenizer = AutoTokenizer.from_pretrained(where.model)
    for row, tokens, targets in zip(workloads.json_lines(where.ordered), where.tokens, where.targets, strict=True):
        text = f"<|user|>{row['prompt']}<|assistant|>{row['response']}<|end|>"
        ids = tokenizer(text, add_special_tokens=False)["input_ids"][:1024]
        answer = ids.index(tokenizer.convert_tokens_to_ids("<|assistant|>")) + 1
        assert (tokens, targets) == (len(ids), len(ids) - answer)


def test_an_epochs_last_step_takes_what_is_left() -> None:
    counts = tuple(range(1, 41))
    where = Place(Path(), Path(), Path(), counts, counts)
    work = workloads.Workload("two", "", epochs=2, total=16)
    assert [tokens for tokens, _ in race.per_step(where, work)] == [136, 74, 456, 154]


def test_runners_that_begin_otherwise_are_told() -> None:
    results = {
        name: [race.Result(0, 0, tree.Watched(), (loss,))] for name, loss in (("peftkit", 10.5), ("other", 10.6))
    }
    with pytest.raises(SystemExit, match=r"peftkit 10\.50000; other 10\.60000"):
        race.begun_alike(WORKLOADS["W1"], results)
    race.begun_alike(WORKLOADS["W2"], results)
    results["other"] = [race.Result(0, 0, tree.Watched(), (10.5001,))]
    race.begun_alike(WORKLOADS["W1"], results)


class Offline(Environment):
    """Without a package; or with one that is nowhere."""

    def commands(self, folder: Path) -> Iterator[list[str]]:
        yield [sys.executable, "-m", "venv", "--without-pip", str(folder)]
        if self.packages:
            yield [sys.executable, "-m", "pip", "install", "--no-index", *self.packages]


def test_an_environment_is_made_once(kept: Path) -> None:
    made = Offline("made", (), hollow=("nothing_in_it",))
    made.make()
    assert subprocess.run([made.python, "-c", "import nothing_in_it"], check=True)
    made.log.unlink()
    made.make()
    assert not made.log.exists(), "it is there"


def test_an_environment_that_cannot_be_made_is_told_and_leaves_nothing(kept: Path) -> None:
    failing = Offline("failing", ("a-package-that-is-nowhere",))
    with pytest.raises(SystemExit, match=f"no environment of failing.*see {failing.log}"):
        failing.make()
    assert "a-package-that-is-nowhere" in failing.log.read_text()
    assert not list(failing.folder.parent.glob("failing*part"))
    assert not failing.folder.exists()


def test_children_are_counted_while_they_live_and_afterwards(tmp_path: Path) -> None:
    burn = "import time\nwhile time.process_time() < 0.3: pass\n"
    parent = f"""
import subprocess, sys, pathlib, time
row = '{{"loss": 1}}\\n'
lines = pathlib.Path({str(tmp_path / "lines")!r})
lines.write_text(row)
time.sleep(0.2)
subprocess.run([sys.executable, "-c", {burn!r}])
with lines.open("a") as file: file.write('{{"loss": 1, "split": "test"}}\\n' + row)
time.sleep(60)
"""
    words = [sys.executable, "-c", parent]
    seen = tree.watch(words, {}, tmp_path / "log", tmp_path / "lines", 2, tmp_path)
    assert len(seen.at) == 2
    assert seen.steady >= 0.28
    assert seen.peak > 2**20


def test_a_runner_that_fails_is_told(tmp_path: Path) -> None:
    words = [sys.executable, "-c", "raise SystemExit('no such thing')"]
    with pytest.raises(SystemExit, match=r"(?s)ended with 1 after 0 of 2 steps.*no such thing"):
        tree.watch(words, {}, tmp_path / "log", tmp_path / "lines", 2, tmp_path)


def test_what_it_would_run_can_be_seen() -> None:
    done = subprocess.run([sys.executable, race.__file__, "--help"], capture_output=True, text=True, check=True)
    assert all(name in done.stdout for name in (*WORKLOADS, *runners.RUNNERS))
