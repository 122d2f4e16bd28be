"""A text for a text: transformers' own loss of the same labels, languages, references, and what is written."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.testing import assert_close
from transformers import (
    BertConfig,
    EncoderDecoderConfig,
    EncoderDecoderModel,
    MBartConfig,
    MBartForConditionalGeneration,
)
from transformers.trainer_pt_utils import LabelSmoother

from peftkit.errors import ConfigError
from peftkit.tasks import Seq2Seq
from peftkit.tasks.base import IGNORED, RowError
from tests.tiny import BERT, EOS, PAD, TWO_SIDES, config, tiny, tokenizer

ROWS = [
    {"source": "The small cat sleeps in the warm sun.", "target": "A cat sleeps."},
    {"source": "No.", "target": "What is the capital of France? Paris, on the Seine."},
    {"source": "The film was long, dull and far too loud; the other one I liked.", "target": "Mixed."},
]
FAMILIES = ("t5", "bart", "marian", "bert2bert", "mbart")


def model_of(family: str) -> Any:
    torch.manual_seed(0)
    if family == "bert2bert":
        both = BertConfig(**{**BERT, "vocab_size": 320}).to_dict()
        decoder = {**both, "is_decoder": True, "add_cross_attention": True}
        made = EncoderDecoderModel(EncoderDecoderConfig(encoder=both, decoder=decoder))
        made.config.decoder_start_token_id, made.config.pad_token_id = EOS, PAD
        return made
    if family == "mbart":
        return MBartForConditionalGeneration(
            MBartConfig(vocab_size=320, pad_token_id=PAD, eos_token_id=EOS, **TWO_SIDES)
        )
    return tiny(family)


@pytest.mark.parametrize("family", FAMILIES)
def test_loss_is_that_of_transformers_for_each_row_alone(family: str) -> None:
    model = model_of(family).train()
    task, words = Seq2Seq().bind(model.config), tokenizer()
    rows = [task.encode(row, words, 64) for row in ROWS]
    batch = task.collate(rows, words)
    outputs = model(**task.inputs(batch))
    expected, counts = [], []
    for row in rows:
        labels = torch.tensor([row["labels"]])
        counts.append(len(row["labels"]))
        expected.append(model(input_ids=torch.tensor([row["input_ids"]]), labels=labels).loss * counts[-1])
    assert task.targets(batch) == sum(counts)
    assert_close(task.loss(outputs, batch), sum(expected))
    records = task.score(outputs, batch)
    assert_close([record["loss"] for record in records], [loss.item() for loss in expected])
    assert [record["targets"] for record in records] == counts


def test_the_decoder_reads_the_target_one_token_late_from_the_models_own_start() -> None:
    features = Seq2Seq().bind(config("t5")).encode(ROWS[0], tokenizer(), 64)
    labels = [*tokenizer()(ROWS[0]["target"])["input_ids"], EOS]
    assert features == {
        "input_ids": tokenizer()(ROWS[0]["source"])["input_ids"],
        "labels": labels,
        "decoder_input_ids": [PAD, *labels[:-1]],
    }


def test_a_model_is_met_once_and_its_limit_holds() -> None:
    task = Seq2Seq(max_target_length=1000).bind(config("bart", max_position_embeddings=50))
    assert (task.max_target_length, task.decoder_start) == (50, EOS)
    assert task.bind(config("bart", max_position_embeddings=50)) is task
    assert Seq2Seq(max_target_length=1000).bind(config("t5")).max_target_length == 1000
    with pytest.raises(ConfigError, match="names no decoder_start_token_id"):
        Seq2Seq().bind(EncoderDecoderConfig(encoder=BertConfig().to_dict(), decoder=BertConfig().to_dict()))
    with pytest.raises(ConfigError, match="has not met its model"):
        Seq2Seq().collate([Seq2Seq().encode(ROWS[0], tokenizer(), 64)], tokenizer())


def test_a_long_target_loses_its_end_but_not_its_end_token() -> None:
    words = tokenizer()
    words.truncation_side = "left"  # it says which side of the source is cut
    short, whole = Seq2Seq(max_target_length=8), Seq2Seq()
    ids = whole.target_ids("The fox. " * 20, words)
    assert short.target_ids("The fox. " * 20, words) == [*ids[:7], EOS]
    assert len(ids) > 20


@pytest.mark.parametrize(
    ("settings", "row", "source", "references"),
    [
        ({"prefix": "summarize: "}, {"source": "Long.", "target": "Short."}, "summarize: Long.", ["Short."]),
        ({}, {"source": "Who?", "context": "I.", "target": ["I", "me"]}, "question: Who? context: I.", ["I", "me"]),
        ({}, {"source": "Who?", "target": {"text": ["I"], "answer_start": [0]}}, "Who?", ["I"]),
        (
            {"source_lang": "en", "target_lang": "de", "prefix": "translate English to German: "},
            {"translation": {"de": "Der Fuchs.", "en": "The fox."}},
            "translate English to German: The fox.",
            ["Der Fuchs."],
        ),
        (
            {"source_lang": "de_DE", "target_lang": "en_XX"},
            {"translation": {"de": "Der Fuchs.", "en": "The fox."}},
            "Der Fuchs.",
            ["The fox."],
        ),
        ({}, {"source": "Who?"}, "Who?", []),
    ],
)
def test_source_and_references(settings: dict, row: dict, source: str, references: list[str]) -> None:
    task = Seq2Seq(**settings)
    assert (task.source_of(row), task.references_of(row)) == (source, references)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"target": "x"}, "no 'source'"),
        ({"source": 3, "target": "x"}, "'source' is no text but int"),
        ({"source": "x"}, "no 'target'"),
        ({"source": "x", "target": 3}, "'target' is no text but int"),
        ({"translation": {"en": "x", "de": "y"}}, "say with --task.source_lang"),
        ({"translation": "x"}, "no object"),
    ],
)
def test_what_is_missing_is_said(row: dict, message: str) -> None:
    with pytest.raises(RowError, match=message):
        Seq2Seq().encode(row, tokenizer(), 64)


def test_a_judged_row_has_source_reference_and_text() -> None:
    words, task = tokenizer(), Seq2Seq(prefix="say: ")
    record = {"loss": 1.0, "targets": 3, "generated_ids": words(" The fox.")["input_ids"]}
    judged = task.judge(ROWS[0], [record], words)
    assert judged == {
        **record,
        "generated": "The fox.",
        "reference": "A cat sleeps.",
        "source": "say: " + ROWS[0]["source"],
    }
    assert task.judge({"source": "x", "target": ["a", "b"]}, [record], words)["reference"] == ["a", "b"]
    assert task.judge({"source": "x"}, [record], words)["reference"] is None


def test_smoothing_spreads_a_share_of_each_target_over_all_tokens() -> None:
    model, words = tiny("t5").eval(), tokenizer()
    plain, smooth = (Seq2Seq(label_smoothing=share).bind(model.config) for share in (0, 0.1))
    batch = plain.collate([plain.encode(row, words, 64) for row in ROWS], words)
    outputs = model(**plain.inputs(batch))
    flat = outputs.logits.flatten(0, 1), batch["labels"].flatten()
    expected = torch.nn.functional.cross_entropy(*flat, label_smoothing=0.1, reduction="sum")
    assert_close(smooth.loss(outputs, batch), expected)
    theirs = LabelSmoother(0.1)({"logits": outputs.logits}, batch["labels"])
    assert_close(smooth.loss(outputs, batch) / smooth.targets(batch), theirs)
    assert smooth.score(outputs, batch) == plain.score(outputs, batch)


def test_a_blank_batch_has_no_targets_and_a_gradient_of_zero() -> None:
    task, model = Seq2Seq().bind(config("t5")), tiny("t5")
    blank = task.blank(task.collate([task.encode(ROWS[0], tokenizer(), 64)], tokenizer()))
    loss = task.loss(model(**task.inputs(blank)), blank)
    loss.backward()
    assert (task.targets(blank), loss.item()) == (0, 0.0)
    assert all(weight.grad.abs().sum() == 0 for weight in model.parameters() if weight.grad is not None)


def test_padding_is_no_target() -> None:
    task = Seq2Seq().bind(config("t5"))
    batch = task.collate([task.encode(row, tokenizer(), 64) for row in ROWS], tokenizer())
    lengths = (batch["labels"] != IGNORED).sum(1).tolist()
    assert lengths == [len(task.target_ids(row["target"], tokenizer())) for row in ROWS]


@pytest.mark.parametrize(
    ("settings", "row"),
    [({}, {"source": "Who?"}), ({"source_lang": "en", "target_lang": "de_DE"}, {"translation": {"en": "Who?"}})],
)
def test_a_source_alone_can_be_answered(settings: dict, row: dict) -> None:
    task, words = Seq2Seq(**settings), tokenizer()
    assert task.encode(task.unlabelled(row), words, 64)["input_ids"] == words("Who?")["input_ids"]


class Babel:
    """A tokenizer of many languages, as NLLB's and M2M's are: the target begins with its language, the source too."""

    eos_token_id, bos_token_id, src_lang, tgt_lang = 2, 0, "en", "en"
    all_special_ids = (0, 2, 90, 91)

    def __call__(self, text: str = "", text_target: str | None = None, **words: Any) -> dict[str, list[int]]:
        language = self.src_lang if text_target is None else self.tgt_lang
        body = [len(word) + 10 for word in (text or text_target or "").split()]
        return {"input_ids": [{"en": 90, "de": 91}[language], *body, 2]}


def test_languages_are_named_to_the_tokenizer_and_generation_begins_with_the_targets() -> None:
    task = Seq2Seq(source_lang="en", target_lang="de").bind(config("bart"))
    row = {"translation": {"en": "the fox", "de": "der Fuchs"}}
    features = task.encode(row, Babel(), 64)
    assert (features["input_ids"], features["labels"]) == ([90, 13, 13, 2], [91, 13, 15, 2])
    batch = {"input_ids": torch.ones(1, 2), "attention_mask": torch.ones(1, 2)}
    assert task.prompts(batch, Babel())["forced_bos_token_id"] == 91
    assert Seq2Seq().prompts(batch, Babel()).keys() == {"input_ids", "attention_mask"}
