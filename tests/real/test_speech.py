"""Telephone prompts: Whisper tiny.en learns to write them down; word error rate against its own before, and against silence."""

from __future__ import annotations

import gzip
import random
from pathlib import Path

import pytest

from tests.real.carriers import carrier
from tests.real.conftest import Train
from tests.real.scores import before_and_after
from tests.real.texts import Row, written

pytestmark = pytest.mark.real
TRAIN, VALIDATION = 64, 32
WORDS = range(4, 16)
"""Words of a prompt: short enough to be quick, long enough to be speech."""


def prompts() -> list[Row]:
    """{audio, text}: sounds at 8 kHz and what they say, without those that are tones."""
    with gzip.open(carrier("transcripts") / "core-sounds-en.txt.gz", "rt") as file:
        said = [line.strip().partition(": ")[::2] for line in file if ": " in line and not line.startswith(";")]
    sounds = carrier("prompts")
    rows = [
        {"audio": str(sounds / f"{name}.wav"), "text": " ".join(text.split())}
        for name, text in said
        if (sounds / f"{name}.wav").exists() and len(text.split()) in WORDS and not set("[]<>#") & set(text)
    ]
    random.Random(1).shuffle(rows)
    return rows


def test_it_learns_to_write_the_prompts(train: Train, whisper: str, tmp_path: Path) -> None:
    rows = prompts()
    run = train(
        model=whisper,
        task={"name": "speech_recognition", "seconds": 10},
        strategy="decoder_only",
        data={
            "train": written(tmp_path / "train.jsonl", rows[:TRAIN]),
            "validation": written(tmp_path / "validation.jsonl", rows[TRAIN : TRAIN + VALIDATION]),
        },
        batch={"total": 8, "micro": 8},
        epochs=1,
        optim={"name": "adamw", "lr": 3e-5},
        eval={"batch": 8, "metrics": [{"name": "wer", "normalize": True}]},
        generate={"max_new_tokens": 40},
    )
    before, after = before_and_after(run, "wer")
    loss_before, loss_after = before_and_after(run, "loss")
    print(
        f"word error rate {after:.3f}; before {before:.3f}, silence 1; loss {loss_after:.3f}, before {loss_before:.3f}"
    )
    assert loss_after < loss_before - 0.02
    assert after < before - 0.01 and after < 0.1
