"""What a model writes: transformers' own text of each row alone, whatever shares its batch and however the model is wrapped.

The checks under ZeRO on 2 processes share one launch (CHECKS, run by tests/engine/together.py).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from peftkit.config.sections import Generate
from peftkit.engine.optim import Optimizer
from peftkit.engine.world import World
from peftkit.evaluation.generate import until_end, write_texts
from peftkit.models.inspect import inner
from peftkit.strategies import Strategy
from peftkit.tasks import Chat, Seq2Seq, Task
from tests.conftest import Together
from tests.engine.odd import opened
from tests.tiny import DECODERS, EOS, config, tiny, tokenizer

WAYS = {
    "greedy": Generate(max_new_tokens=12),
    "beams": Generate(max_new_tokens=12, num_beams=3),
    "tuned beams": Generate(
        max_new_tokens=9, num_beams=2, length_penalty=-1.0, repetition_penalty=1.2, no_repeat_ngram_size=2
    ),
}
SHORT = {"short": Generate(max_new_tokens=5), "short beams": Generate(max_new_tokens=5, num_beams=3)}
WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "while", "small", "cats", "sleep"]
FAMILIES = ("llama", "gpt2", "t5", "bart")


def rows() -> list[dict[str, str]]:
    draw = random.Random(0)
    return [{"prompt": " ".join(draw.choices(WORDS, k=count)), "response": "fine."} for count in (1, 9, 4, 17, 2, 6)]


def task_of(family: str) -> Task:
    if family in DECODERS:
        return Chat()
    return Seq2Seq().bind(config(family))


def encoded(task: Task) -> list[dict[str, Any]]:
    named = [{"source": row["prompt"], "target": row["response"], **row} for row in rows()]
    return [task.encode(row, tokenizer(), 96) for row in named]


def writer(family: str, seed: int = 3) -> Any:
    """A model whose texts differ by row and end at different lengths: small weights of random models all say one token."""
    model = tiny(family, seed=seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1:
                weight.mul_(4 if "embed" in name or "shared" in name or "wte" in name else 6)
    return model


def alone(model: Any, task: Task, features: dict[str, Any], settings: Generate) -> list[int]:
    """The row's text by transformers' own generate, on the plain model, without padding."""
    words = settings.model_dump()
    if settings.num_beams == 1:
        words.pop("length_penalty")
    ids = features["input_ids"]
    if isinstance(task, Chat):
        ids = ids[: features["labels"].index(next(label for label in features["labels"] if label >= 0))]
    model.eval()
    out = model.generate(
        input_ids=torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        do_sample=False,
        **words,
    )
    model.train()
    return until_end(out[0, 1 if model.config.is_encoder_decoder else len(ids) :].tolist(), {EOS})


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("family", FAMILIES)
def test_each_row_is_written_as_if_alone(family: str, way: str) -> None:
    model, task, words = writer(family), task_of(family), tokenizer()
    expected = [alone(model, task, row, WAYS[way]) for row in encoded(task)]
    model.eval()
    model.config.use_cache = False
    batches = [encoded(task)[:4], encoded(task)[4:]]
    found = [ids for batch in batches for ids in write_texts(model, task, task.collate(batch, words), words, WAYS[way])]
    assert found == expected
    assert len({tuple(ids) for ids in expected}) > 1, "rows that all say the same prove nothing"


def test_a_text_ends_with_the_token_that_ends_a_turn_too() -> None:
    """A model that always says the end of a turn, which is another token than the end of a text, says nothing more."""
    model, words, task = tiny("llama"), tokenizer(), Chat()
    words.chat_template = words.chat_template.replace("{{ eos_token }}", "<|system|>")
    end = words.convert_tokens_to_ids("<|system|>")
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.fill_(float("norm" in name or "embed" in name))  # whatever is read, the last state is a row of ones
        model.lm_head.weight[end] = 1.0
    features = [task.encode(row, words, 96) for row in rows()[:3]]
    model.eval()
    batch = task.collate(features, words)
    assert write_texts(model, task, batch, words, WAYS["greedy"]) == [[], [], []]
    record = task.judge(rows()[0], [{"generated_ids": [], "reference_ids": task.expected(batch)[0]}], words)
    assert (record["generated"], record["reference"]) == ("", "fine.")


def test_what_follows_the_end_is_not_written() -> None:
    assert until_end([5, 6, EOS, 7], {EOS}) == [5, 6]
    assert until_end([5, 6], {EOS}) == [5, 6]


def written_in_a_world(family: str, strategy: str, zero: str) -> Callable[[World, Path], None]:
    """Each process writes its share of the rows, one of them a blank batch, between two passes of training."""

    def check(world: World, folder: Path) -> None:
        task, words = task_of(family), tokenizer()
        torch.manual_seed(0)
        model = Strategy.model_validate(strategy).adapt(writer(family))
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if "lora_B" in name:
                    weight.normal_(std=0.3)
        expected = {way: [alone(model, task, row, SHORT[way]) for row in encoded(task)] for way in SHORT}
        plain = inner(model)[1]
        plain.config.use_cache = False
        plain.gradient_checkpointing_enable({"use_reentrant": False})
        batches = [task.collate(encoded(task)[start : start + 2], words) for start in (0, 2, 4)]
        engine = opened(model.train(), zero, world, Optimizer.model_validate({"name": "sgd", "lr": 1e-30}))
        before = learnt(engine, task, batches[world.process])
        shared = [*enumerate(batches), *([(None, task.blank(batches[0]))] if world.processes == 2 else [])]
        engine.deepspeed.eval()
        with torch.no_grad():
            for way, texts in expected.items():
                for number, batch in shared[world.process :: world.processes]:
                    found = write_texts(engine.deepspeed, task, batch, words, SHORT[way])
                    if number is not None:
                        assert found == texts[2 * number : 2 * number + 2], (way, number)
        engine.deepspeed.train()
        assert learnt(engine, task, batches[world.process]) == before
        engine.close()

    return check


def learnt(engine: Any, task: Task, batch: dict[str, Any]) -> float:
    """A step's loss."""
    loss = task.loss(engine.deepspeed(**task.inputs(batch)), batch)
    engine.deepspeed.backward(loss)
    engine.deepspeed.step()
    return float(loss.detach())


CHECKS = {
    " ".join(case): written_in_a_world(*case)
    for case in (
        ("llama", "full", "zero2"),
        ("llama", "lora", "zero3"),
        ("t5", "lora", "zero2"),
        ("t5", "full", "zero3"),
    )
}


@pytest.mark.launch
@pytest.mark.parametrize("check", CHECKS)
def test_two_processes_write_what_one_does(check: str, together: Together) -> None:
    assert not together.wrong(__name__, check)
