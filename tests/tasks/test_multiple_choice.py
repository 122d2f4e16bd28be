"""Choices in lists and in columns, rows with more and fewer of them."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from peftkit.data.columns import found, has_needed
from peftkit.tasks import MultipleChoice
from peftkit.tasks.base import LabelError, RowError
from tests.tiny import tiny, tokenizer

TASK = MultipleChoice()
ROWS = [
    {"question": "What is it?", "choices": ["a film", "the sun", "one very long and dull answer"], "label": 1},
    {"context": "The film was long.", "choices": ["And dull.", "So"], "label": "A"},
    {"context": "The cat sleeps.", "question": "Where?", "choice1": "in the sun", "choice2": "here", "label": 1},
    {"question": "Who?", "choices": {"label": ["1", "2"], "text": ["a dog", "a fox"]}, "label": "2"},
]


def batch_of(rows=ROWS):
    return TASK.collate([TASK.encode(row, tokenizer(), 64) for row in rows], tokenizer())


def test_labels_are_numbers_letters_and_names():
    assert batch_of()["labels"].tolist() == [1, 0, 1, 1]
    assert MultipleChoice(count_from=1).encode({**ROWS[0], "label": "3"}, tokenizer(), 64)["labels"] == 2


def test_a_batch_is_what_its_rows_are_alone():
    model, batch = tiny("bert", head="multiple_choice"), batch_of()
    outputs = model(**TASK.inputs(batch))
    alone = [batch_of([row]) for row in ROWS]
    assert_close(TASK.loss(outputs, batch), sum(TASK.loss(model(**TASK.inputs(one)), one) for one in alone))
    own = model(**TASK.inputs(alone[1]), labels=alone[1]["labels"])  # transformers' own loss
    assert_close(TASK.loss(own, alone[1]), own.loss)
    assert batch["there"].sum(1).tolist() == [3, 2, 2, 2] and TASK.targets(batch) == 4


def test_a_choice_that_is_none_is_never_predicted_and_has_no_gradient():
    model, batch = tiny("bert", head="multiple_choice"), batch_of()
    logits = model(**TASK.inputs(batch)).logits.detach().clone()
    logits[~batch["there"]] = 1e9
    outputs = type("Outputs", (), {"logits": logits.requires_grad_()})
    records = TASK.score(outputs, batch)
    assert [len(record["probabilities"]) for record in records] == [3, 2, 2, 2]
    assert all(int(record["prediction"]) < len(record["probabilities"]) for record in records)
    assert [record["label"] for record in records] == ["1", "0", "1", "1"]
    loss = TASK.loss(outputs, batch)
    loss.backward()
    assert loss.isfinite() and not logits.grad[~batch["there"]].any()
    assert_close(sum(record["loss"] for record in records), loss.item())


def test_a_blank_batch_has_no_targets_and_no_loss_but_a_graph():
    model, batch = tiny("bert", head="multiple_choice"), TASK.blank(batch_of())
    loss = TASK.loss(model(**TASK.inputs(batch)), batch)
    loss.backward()
    assert (TASK.targets(batch), loss.item()) == (0, 0.0)


def test_the_context_is_cut_and_the_choice_is_whole():
    row = {"context": "and so on " * 40, "question": "Why?", "choices": ["for the sun", "because"], "label": 0}
    features = TASK.encode(row, tokenizer(), 24)
    assert features["choice_lengths"] == [24, 24]
    assert tokenizer().decode(features["input_ids"][:24]).endswith("Why? for the sun")
    with pytest.raises(RowError, match="a choice fills 8 tokens by itself"):
        TASK.encode({**row, "choices": ["word " * 20, "b"]}, tokenizer(), 8)


@pytest.mark.parametrize(
    ("change", "problem", "message"),
    [
        ({"label": None}, LabelError, "no 'label'$"),
        ({"label": 3}, LabelError, "of no choice"),
        ({"label": "E"}, LabelError, "of no choice"),
        ({"label": -1}, LabelError, "of no choice"),
        ({"choices": ["secret"]}, RowError, "1 choice; there is nothing to choose$"),
        ({"choices": "secret"}, RowError, "'choices' is no list of texts$"),
        ({"choices": ["secret", ""]}, RowError, "'choices' is no list of texts$"),
        ({"question": None}, RowError, "no 'question'$"),
    ],
)
def test_a_wrong_row_says_what_is_wrong_and_not_the_row(change, problem, message):
    with pytest.raises(problem, match=message) as raised:
        TASK.encode({**ROWS[0], **change}, tokenizer(), 64)
    assert type(raised.value) is problem and "secret" not in str(raised.value)


def test_a_row_to_be_predicted_needs_no_label():
    features = TASK.encode(TASK.unlabelled({"question": "Who?", "choices": ["a", "b"]}), tokenizer(), 64)
    assert TASK.targets(TASK.collate([features], tokenizer())) == 0


@pytest.mark.parametrize(
    "columns",
    [
        ["sent1", "sent2", "ending0", "ending1", "ending2", "ending3", "label"],
        ["premise", "choice1", "choice2", "question", "label"],
        ["question", "choices", "answerKey"],
        ["article", "question", "options", "answer"],
        ["sentence", "option1", "option2", "answer"],
        ["question", "A", "B", "C", "D", "answer"],
        ["ctx", "endings", "label"],
    ],
)
def test_the_columns_of_common_data_sets_are_known(columns):
    assert has_needed(TASK, found(TASK, columns))


def test_the_pieces_mark_the_right_choice():
    pieces = TASK.pieces(TASK.encode(ROWS[0], tokenizer(), 64), tokenizer())
    assert [target for _, target in pieces] == [False, True, False]
    assert torch.tensor(batch_of()["attention_mask"].shape).tolist()[:2] == [4, 3]
