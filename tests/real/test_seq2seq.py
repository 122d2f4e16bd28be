"""What does this Python function do? An encoder-decoder of two MiniLMs, whose decoder has yet to learn to write.

There is no seq2seq model among the packages, so what is held against each other is what a start from taught weights is
worth: against the same model with random weights, and against how often each word stands in the training targets.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoTokenizer, EncoderDecoderConfig, EncoderDecoderModel

from peftkit.data.demo import INSTRUCTION, tables
from tests.real.conftest import Train
from tests.real.scores import before_and_after
from tests.real.texts import Row, written

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def rows() -> tuple[list[Row], list[Row]]:
    return tuple([pair(row) for row in tables()[split].rows] for split in ("train", "validation"))


def pair(row: Row) -> Row:
    code = row["prompt"].removeprefix(INSTRUCTION).removeprefix("```python\n")
    return {"source": code, "target": row["response"]}


def taught(minilm: str) -> EncoderDecoderModel:
    return EncoderDecoderModel.from_encoder_decoder_pretrained(minilm, minilm)


def random(minilm: str) -> EncoderDecoderModel:
    config = AutoConfig.from_pretrained(minilm)
    return EncoderDecoderModel(EncoderDecoderConfig.from_encoder_decoder_configs(config, config))


@pytest.fixture(scope="module")
def loss(
    train: Train, minilm: str, rows: tuple[list[Row], list[Row]], tmp_path_factory: pytest.TempPathFactory
) -> object:
    """The loss of a token after a training, by how the model was made."""

    def of(made: Callable[[str], EncoderDecoderModel]) -> float:
        folder = tmp_path_factory.mktemp("seq2seq")
        run = train(
            model=saved(made, minilm, folder / "model"),
            task={"name": "seq2seq", "max_target_length": 24},
            strategy="full",
            data={
                "train": written(folder / "train.jsonl", rows[0]),
                "validation": written(folder / "validation.jsonl", rows[1]),
                "max_length": 32,
            },
            batch={"total": 16, "micro": 16},
            epochs=1,
            optim={"name": "adamw", "lr": 5e-4},
            eval={"batch": 32, "before": False},
        )
        return before_and_after(run, "loss")[1]

    return of


def saved(made: Callable[[str], EncoderDecoderModel], minilm: str, folder: Path) -> str:
    torch.manual_seed(1)
    model, tokenizer = made(minilm), AutoTokenizer.from_pretrained(minilm)
    # MiniLM's tokens for the beginning and the end of a text begin and end what is written, too.
    for config in (model.config, model.generation_config):
        config.decoder_start_token_id, config.eos_token_id = tokenizer.cls_token_id, tokenizer.sep_token_id
        config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def by_frequency(minilm: str, rows: tuple[list[Row], list[Row]]) -> float:
    """The loss of a token if each is said as often as it stands in the training targets (and once more)."""
    tokenizer = AutoTokenizer.from_pretrained(minilm)
    learnt, asked = ([token for row in split for token in tokenizer(row["target"])["input_ids"]] for split in rows)
    counts = Counter(learnt)
    whole = len(learnt) + tokenizer.vocab_size
    return -sum(math.log((counts[token] + 1) / whole) for token in asked) / len(asked)


def test_taught_weights_are_worth_something(
    loss: Callable[..., float], minilm: str, rows: tuple[list[Row], list[Row]]
) -> None:
    warm, cold, frequent = loss(taught), loss(random), by_frequency(minilm, rows)
    print(f"loss {warm:.3f}; before random weights {cold:.3f}, frequency {frequent:.3f}")
