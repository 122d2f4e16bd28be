"""Masked words: how many, which, always the same for a row and its epoch; and transformers' loss of them."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
import torch
from torch.testing import assert_close

from peftkit.errors import DataError
from peftkit.tasks import MaskedLM
from peftkit.tasks.base import IGNORED, RowError
from peftkit.tasks.masked_lm import SPECIAL
from tests.tiny import tiny, tokenizer

TEXTS = ["The quick brown fox jumps over the lazy dog.", "What is the capital of France? Paris.", "No."]
MASK = "<|user|>"
TASK = MaskedLM(mask_token=MASK)


def windows(text: str, max_length: int = 64, stride: int | None = None, task: MaskedLM = TASK) -> list[dict]:
    return task.windows({"text": text}, tokenizer(), max_length, stride)


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
def test_the_loss_is_that_of_transformers_for_each_window_alone(family: str) -> None:
    model, words = tiny(family, head="masked_lm"), tokenizer()
    rows = [TASK.vary(windows(text)[0], words, Random(number)) for number, text in enumerate(TEXTS)]
    batch = TASK.collate(rows, words)
    outputs = model(**TASK.inputs(batch))
    expected, counts = [], []
    for row in rows:
        counts.append(sum(label != IGNORED for label in row["labels"]))
        mean = model(input_ids=torch.tensor([row["input_ids"]]), labels=torch.tensor([row["labels"]])).loss
        expected.append(mean * counts[-1])
    assert TASK.targets(batch) == sum(counts)
    assert_close(TASK.loss(outputs, batch), sum(expected))
    records = TASK.score(outputs, batch)
    assert_close([record["loss"] for record in records], [loss.item() for loss in expected])
    assert TASK.judge({}, records, words)["targets"] == sum(counts)
    assert TASK.targets(TASK.blank(batch)) == 0


def test_of_the_chosen_tokens_eight_in_ten_are_masked_and_one_is_another() -> None:
    words = tokenizer()
    (window,) = windows(" ".join(TEXTS * 4), 256)
    ids, found = window["input_ids"], Counter[str]()
    for seed in range(300):
        varied = TASK.vary(window, words, Random(seed))
        assert sum(label != IGNORED for label in varied["labels"]) == round(0.15 * len(ids))
        for own, now, label in zip(ids, varied["input_ids"], varied["labels"], strict=True):
            assert label in (IGNORED, own)
            assert label == own or now == own, "what is not to be told stays"
            if label == own:
                found["mask" if now == words.convert_tokens_to_ids(MASK) else "kept" if now == own else "other"] += 1
    total = found.total()
    assert found["mask"] / total == pytest.approx(0.8, abs=0.02)
    assert found["other"] / total == pytest.approx(0.1, abs=0.02)


def test_masks_hang_on_the_draw_alone() -> None:
    (window,) = windows(TEXTS[0])
    first, again, other = (TASK.vary(window, tokenizer(), Random(seed)) for seed in ("1", "1", "2"))
    assert first == again
    assert first["labels"] != other["labels"]
    assert windows(TEXTS[0]) == [window], "the window itself is as it was"


def test_whole_words_are_masked_together() -> None:
    task, words = MaskedLM(mask_token=MASK, whole_word=True, mask_share=0.3), tokenizer()
    (window,) = windows(TEXTS[0], task=task)
    assert len(set(window["words"])) < len(window["words"]), "some words have several tokens"
    for seed in range(20):
        labels = task.vary(window, words, Random(seed))["labels"]
        told = {word for word, label in zip(window["words"], labels, strict=True) if label != IGNORED}
        assert all((label != IGNORED) == (word in told) for word, label in zip(window["words"], labels, strict=True))
        assert sum(label != IGNORED for label in labels) >= round(0.3 * len(labels))


def test_special_tokens_are_never_masked() -> None:
    window = {"input_ids": [1, 50, 51, 2], "words": [SPECIAL, 0, 0, SPECIAL]}
    for seed in range(20):
        labels = TASK.vary(window, tokenizer(), Random(seed))["labels"]
        assert labels[0] == labels[3] == IGNORED
        assert sum(label != IGNORED for label in labels) == 1, "at least one token is to be told"


def test_a_long_text_is_cut_into_windows_and_nothing_is_lost() -> None:
    ids = tokenizer()(" ".join(TEXTS * 3))["input_ids"]
    found = windows(" ".join(TEXTS * 3), max_length=20)
    assert [token for window in found for token in window["input_ids"]] == ids
    assert {len(window["input_ids"]) for window in found[:-1]} == {20}
    shared = windows(" ".join(TEXTS * 3), max_length=20, stride=5)
    assert shared[0]["input_ids"][-5:] == shared[1]["input_ids"][:5]


def test_rows_that_nobody_varied_are_masked_the_same_way_each_time() -> None:
    rows = [window for text in TEXTS for window in windows(text)]
    first, again = TASK.collate(rows, tokenizer()), TASK.collate(rows, tokenizer())
    assert first.keys() == {"input_ids", "labels", "attention_mask"}
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert [int((labels != IGNORED).sum()) for labels in first["labels"]] == [
        sum(label != IGNORED for label in row["labels"]) for row in rows
    ]


def test_what_cannot_be_masked_is_said() -> None:
    with pytest.raises(DataError, match="no mask token"):
        MaskedLM().windows({"text": "The fox."}, tokenizer(), 64, None)
    with pytest.raises(DataError, match=r"no token '\[MASK\]'"):
        MaskedLM(mask_token="[MASK]").windows({"text": "The fox."}, tokenizer(), 64, None)  # noqa: S106
    with pytest.raises(RowError, match="no 'text'"):
        windows("")


def test_the_pieces_are_the_text_with_what_is_to_be_told_marked() -> None:
    (window,) = windows(TEXTS[0])
    pieces = TASK.pieces(window, tokenizer())
    assert "".join(text for text, _ in pieces) == TEXTS[0]
    assert {target for _, target in pieces} == {True, False}
