"""The races' driver: a race runs, what it counts is right, and both runners do the same work."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench import race, runners, tree, workloads
from tests.bench.workloads import WORKLOADS, Place


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where models, rows and runs lie: nothing of them goes into the user's cache."""
    folder = tmp_path_factory.mktemp("bench")
    with pytest.MonkeyPatch.context() as patch:
        for module in (workloads, race, runners):
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
