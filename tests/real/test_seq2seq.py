"""What does this Python function do? An encoder-decoder of two MiniLMs, whose decoder has yet to learn to write.

There is no seq2seq model among the packages, and in 25 steps this one learns which words are usual, and some of their
order, not to summarise: no text of it is held against a baseline, but the loss of a token. (Of the likeliest tokens it
has 0.29 right; the most frequent token at each place has 0.21, after each token 0.32.)
"""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, EncoderDecoderModel

from peftkit.data.demo import INSTRUCTION, tables
from tests.real.conftest import Train
from tests.real.scores import before_and_after
from tests.real.texts import Row, written

pytestmark = pytest.mark.real
LONGEST = 24
"""Tokens of a docstring's first line."""


def pairs(split: str) -> list[Row]:
    rows = tables()[split].rows
    codes = [row["prompt"].removeprefix(INSTRUCTION).removeprefix("```python\n") for row in rows]
    return [{"source": code, "target": row["response"]} for code, row in zip(codes, rows, strict=True)]


def two_of(minilm: str, folder: Path) -> str:
    """MiniLM reads and MiniLM writes; what the second sees of the first is new. Its first and last token are BERT's."""
    torch.manual_seed(1)
    model = EncoderDecoderModel.from_encoder_decoder_pretrained(minilm, minilm)
    tokenizer = AutoTokenizer.from_pretrained(minilm)
    for config in (model.config, model.generation_config):
        config.decoder_start_token_id, config.eos_token_id = tokenizer.cls_token_id, tokenizer.sep_token_id
        config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def by_frequency(tokenizer: Any, learnt: list[Row], asked: list[Row]) -> float:
    """The loss of a token if each is as likely as it is frequent in the training targets, smoothed as suits it best."""
    words = {"truncation": True, "max_length": LONGEST}
    counts, tokens = (
        [token for row in rows for token in tokenizer(row["target"], **words)["input_ids"]] for rows in (learnt, asked)
    )
    seen = Counter(counts)

    def loss(more: float) -> float:
        whole = len(counts) + more * tokenizer.vocab_size
        return -sum(math.log((seen[token] + more) / whole) for token in tokens) / len(tokens)

    return min(loss(10**-power) for power in (0, 0.5, 1, 1.5, 2, 3))


def test_it_learns_more_than_which_words_are_frequent(train: Train, minilm: str, tmp_path: Path) -> None:
    learnt, asked = pairs("train"), pairs("validation")
    run = train(
        model=two_of(minilm, tmp_path / "model"),
        task={"name": "seq2seq", "max_target_length": LONGEST},
        strategy="full",
        data={
            "train": written(tmp_path / "train.jsonl", learnt),
            "validation": written(tmp_path / "validation.jsonl", asked),
            "max_length": 32,
        },
        batch={"total": 16, "micro": 16},
        epochs=1,
        optim={"name": "adamw", "lr": 5e-4},
        eval={"batch": 32},
    )
    before, after = before_and_after(run, "loss")
    frequency = by_frequency(AutoTokenizer.from_pretrained(minilm), learnt, asked)
    print(f"loss {after:.3f}; before {before:.3f}, frequency {frequency:.3f}")
    assert after < frequency - 0.4
