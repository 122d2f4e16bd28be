"""Rows that are encoded together are those that are encoded one by one, to the bit: for tokenizers and templates of many habits."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from peftkit.data import encode as encoding
from peftkit.data.encode import Encoder, can_together, encode_rows
from peftkit.tasks import CausalLM, Chat, SequenceClassification, Task
from peftkit.tasks.base import IGNORED, Features, Row
from peftkit.tasks.conversations import conversations
from peftkit.tasks.many import token_bytes
from tests.tasks.test_chat import CHATML, COUNTING, MARKED, NO_PROMPT, OPEN_END, REASONING
from tests.tiny import TEXT, TOKENS, tokenizer

SETS = (
    "{% set ns = namespace(n=0) %}{% set first = messages[0] %}{% for m in messages %}{% set ns.n = ns.n + 1 %}"
    "<|user|>{{ ns.n }}{{ first.role }} {{ m.content | trim }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<|user|>{{ ns.n + 1 }}{{ first.role }} {% endif %}"
)
REFUSES = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHATML
BARE = "{% for m in messages %}{{ m.content }}{% endfor %}"
TEMPLATES = [None, CHATML, MARKED, NO_PROMPT, OPEN_END, REASONING, COUNTING, SETS, REFUSES, BARE]
PIECES = [
    *("Paris", " the", "\n", "\n\n", "  ", "\t", " ", "</s>", "<|user|>", "</", "<|us", "1234", "don't", "...", "\x00"),
    *(
        "<think>",
        "</think>",
        "word word word",
        "\r\n",
        "\u00e9",
        "e\u0301",
        "a\u0300\u0323",
        "\ufb01",
        "\u0130",
        "\u0120",
    ),
    *("\u65e5\u672c", "\U0001f30a", "\u200d", "\u00a0", "\ufdd0"),
]
END, USER, UNKNOWN, BEGIN = "</s>", "<|user|>", "<unk>", "<s>"
HALF = "\ud800"
"""Half a surrogate pair, which no tokenizer takes."""


def bpe(
    prefix: bool = False, normalizer: Any = None, splits: Any = None, after: Any = None, lstrip: bool = False
) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer without a token for what is unknown, as GPT-2's descendants have it."""
    made = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=splits is None)
    made.pre_tokenizer = pre_tokenizers.Sequence([*splits, byte_level]) if splits else byte_level
    made.decoder = decoders.ByteLevel()
    if normalizer:
        made.normalizer = normalizer
    if after:
        made.post_processor = after
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = [AddedToken(token, special=True, lstrip=lstrip) for token in TOKENS]
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(TEXT, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token=END, bos_token=TOKENS[0], additional_special_tokens=[USER]
    )


def word_pieces() -> PreTrainedTokenizerFast:
    made = Tokenizer(models.WordPiece(unk_token=UNKNOWN))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    names = [UNKNOWN, BEGIN, END, USER]
    made.train_from_iterator(TEXT, trainers.WordPieceTrainer(vocab_size=200, special_tokens=names, show_progress=False))
    ends = [(BEGIN, 1), (END, 2)]
    made.post_processor = processors.TemplateProcessing("<s> $A </s>", "<s> $A </s> $B:1 </s>:1", ends)
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token=UNKNOWN, cls_token=BEGIN, eos_token=END, model_input_names=inputs
    )


def sentence_pieces() -> PreTrainedTokenizerFast:
    made = Tokenizer(models.BPE(unk_token=UNKNOWN, byte_fallback=True, fuse_unk=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    names = [UNKNOWN, BEGIN, END, USER, *(f"<0x{byte:02X}>" for byte in range(256))]
    made.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=420, special_tokens=names[:4], show_progress=False))
    made.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A <s> $B", [(BEGIN, 1)])
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token=UNKNOWN, bos_token=BEGIN, eos_token=END)


def qwen() -> PreTrainedTokenizerFast:
    split = pre_tokenizers.Split(Regex(r"\p{N}|\s*[\r\n]+|\s+(?!\S)|\s+|[^\s\p{N}]+"), "isolated")
    return bpe(normalizer=normalizers.NFC(), splits=[split], after=processors.ByteLevel(trim_offsets=False))


TOKENIZERS: dict[str, Callable[[], Any]] = {
    "tiny": tokenizer,
    "plain bytes": bpe,
    "qwen": qwen,
    "trimmed": lambda: bpe(after=processors.ByteLevel(trim_offsets=True, add_prefix_space=False)),
    "trimmed but the first": lambda: bpe(after=processors.ByteLevel(trim_offsets=True, add_prefix_space=True)),
    "roberta": lambda: bpe(after=processors.RobertaProcessing(("</s>", 2), ("<s>", 1), trim_offsets=True)),
    "prefix": lambda: bpe(prefix=True),
    "greedy special": lambda: bpe(lstrip=True),
    "digits": lambda: bpe(splits=[pre_tokenizers.Digits(individual_digits=True)]),
    "lossy": lambda: bpe(splits=[pre_tokenizers.Split(" ", "removed")]),
    "word pieces": word_pieces,
    "sentence pieces": sentence_pieces,
    "slow": ByT5Tokenizer,
}
BY_BYTES = {"plain bytes", "qwen", "trimmed", "trimmed but the first", "roberta", "greedy special", "digits"}


def text(draw: random.Random) -> str:
    return "".join(draw.choices(PIECES, k=draw.randrange(12)))


def chat_rows(seed: int) -> Iterator[Row]:
    draw = random.Random(seed)
    odd: list[Row] = [
        *({}, {"messages": []}, {"messages": "no"}, {"prompt": 3, "response": "x"}),
        {"messages": [{"role": "user", "content": "only"}]},
        {"messages": [{"role": "king", "content": "x"}]},
        {"prompt": "p", "response": "r", "unlabelled": True},
    ]
    yield from odd
    for _ in range(60):
        turns = [{"role": "system", "content": text(draw)}] if draw.random() < 0.3 else []
        for _ in range(draw.randrange(1, 4)):
            turns += [{"role": "user", "content": text(draw)}, {"role": "assistant", "content": text(draw)}]
        if draw.random() < 0.1:
            turns[-1] = {"from": "gpt", "value": text(draw)}
        if draw.random() < 0.1:
            turns[0]["name"] = "x"
        yield {"messages": turns[: draw.choice([len(turns), len(turns), len(turns) - 1])]}
        yield {"prompt": text(draw), "response": text(draw), "system": draw.choice([None, text(draw)])}


def text_rows(seed: int) -> Iterator[Row]:
    draw = random.Random(seed)
    odd: list[Any] = [None, "", 3, " ", "</s>", "x", " " * 50]
    yield from ({"text": one, "label": "a"} for one in odd)
    for _ in range(80):
        pair = {"text_pair": text(draw)} if draw.random() < 0.3 else {}
        yield {"text": text(draw), "label": draw.choice(["a", "b", "c", "a", "b"]), **pair}


def encoded(task: Task, processor: Any, rows: list[Row], max_length: int, truncate: str) -> Any:
    done = encode_rows(Encoder(task, processor, max_length, truncate), rows)
    windows = [[plain(window) for window in each] for each in done.windows]
    return windows, done.groups, done.cut, {number: (type(one), str(one)) for number, one in done.problems.items()}


def plain(window: Features) -> Features:
    return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in window.items()}


def same_one_by_one(
    monkeypatch: pytest.MonkeyPatch, task: Task, processor: Any, rows: list[Row], max_length: int, truncate: str
) -> None:
    found = together_or_error(task, processor, rows, max_length, truncate)
    assert rows[-1].get("response") == HALF or rows[-1].get("text") == HALF or isinstance(found[0], list)
    with monkeypatch.context() as one_by_one:
        one_by_one.setattr(encoding, "can_together", lambda task: False)
        assert found == together_or_error(task, processor, rows, max_length, truncate)


def together_or_error(*words: Any) -> Any:
    try:
        return encoded(*words)
    except Exception as problem:
        return type(problem), str(problem)


@pytest.mark.parametrize("template", range(len(TEMPLATES)))
@pytest.mark.parametrize("name", TOKENIZERS)
def test_conversations(name: str, template: int, monkeypatch: pytest.MonkeyPatch) -> None:
    processor = TOKENIZERS[name]()
    processor.chat_template = TEMPLATES[template] or tokenizer().chat_template
    rows = list(chat_rows(template))
    for max_length, truncate in ((1000, "right"), (20, "right"), (6, "right"), (30, "left")):
        same_one_by_one(monkeypatch, Chat(), processor, rows, max_length, truncate)
    same_one_by_one(monkeypatch, Chat(), processor, [*rows, {"prompt": "p", "response": HALF}], 50, "right")


@pytest.mark.parametrize("name", TOKENIZERS)
def test_texts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    processor = TOKENIZERS[name]()
    rows = list(text_rows(1))
    tasks = [
        CausalLM(),
        SequenceClassification(labels=["a", "b"]),
        SequenceClassification(markers="Paris the don't ..."),
    ]
    for task in [*tasks[:2], tasks[2].fit(rows[7:])]:
        for max_length, truncate in ((1000, "right"), (12, "right"), (5, "right"), (12, "left")):
            same_one_by_one(monkeypatch, task, processor, rows, max_length, truncate)
            same_one_by_one(monkeypatch, task, processor, [*rows, {"text": HALF, "label": "a"}], max_length, truncate)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_tokens_are_placed_by_their_bytes_where_that_is_right(name: str) -> None:
    made = TOKENIZERS[name]()
    assert made.is_fast is (name != "slow")
    assert (made.is_fast and token_bytes(made) is not None) == (name in BY_BYTES)


def test_most_conversations_are_encoded_together() -> None:
    processor = bpe()
    processor.chat_template = CHATML
    rows = [{"prompt": f"What is {number}?", "response": f"It is {number}."} for number in range(50)]
    known = Chat().encode_many(rows, processor, 100)
    assert all(isinstance(one, tuple) for one in known)


def test_a_changed_template_is_seen() -> None:
    processor = bpe()
    processor.chat_template = CHATML
    before = conversations(processor)
    assert conversations(processor) is before
    processor.chat_template = OPEN_END
    assert conversations(processor) is not before


def test_a_task_that_encodes_otherwise_is_asked_row_by_row() -> None:
    class Shouted(CausalLM):
        def encode(self, row: Row, processor: Any, max_length: int) -> Features:
            return {"input_ids": [1, 2], "labels": [IGNORED, 2]}

    row = {"input_ids": [1, 2], "labels": [IGNORED, 2]}
    assert can_together(CausalLM())
    assert not can_together(Shouted())
    assert encode_rows(Encoder(Shouted(), bpe(), 10), [{"text": "x"}]).windows == [[row]]
