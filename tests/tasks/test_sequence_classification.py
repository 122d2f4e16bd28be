"""One label a text: the labels are read from the rows, the loss is transformers' mean times the rows."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch.testing import assert_close

from peftkit.tasks import SequenceClassification, Task
from peftkit.tasks.base import LabelError, RowError
from tests.tiny import tiny, tokenizer

ROWS = [
    {"text": "good film", "label": "yes"},
    {"text": "far too long and loud", "label": "no"},
    {"text": "so", "label": "so"},
]
TASK = SequenceClassification().fit(ROWS)


def encoded(rows=ROWS, task=TASK):
    return [task.encode(row, tokenizer(), 64) for row in rows]


@pytest.mark.parametrize("family", ["bert", "llama", "t5"])
def test_loss_is_transformers_mean_times_the_rows(family):
    model = tiny(family, head="sequence_classification", num_labels=3)
    batch = TASK.collate(encoded(), tokenizer())
    if family == "t5":  # its head reads the last end-of-text token
        batch["input_ids"][:, -1] = 2
    ours, theirs = TASK.loss(model(**TASK.inputs(batch)), batch), model(**batch).loss
    assert_close(ours, theirs * 3)
    assert TASK.targets(batch) == 3


def test_a_record_names_label_and_prediction():
    model, batch = tiny("bert", num_labels=3).eval(), TASK.collate(encoded(), tokenizer())
    outputs = model(**TASK.inputs(batch))
    records = TASK.score(outputs, batch)
    assert [record["label"] for record in records] == ["yes", "no", "so"]
    assert [record["prediction"] for record in records] == [TASK.labels[i] for i in outputs.logits.argmax(1)]
    assert_close(torch.tensor([record["probabilities"] for record in records]), outputs.logits.softmax(-1))
    assert_close(sum(record["loss"] for record in records), TASK.loss(outputs, batch).item())


def test_a_blank_batch_has_no_targets_and_no_loss():
    model, batch = tiny("bert", num_labels=3), TASK.collate(encoded(), tokenizer())
    blank = TASK.blank(batch)
    loss = TASK.loss(model(**TASK.inputs(blank)), blank)
    loss.backward()
    assert (TASK.targets(blank), loss.item()) == (0, 0.0)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["b", "a", "b"], ["a", "b"]),
        ([10, 2, 2], ["2", "10"]),
        (["10", "2"], ["2", "10"]),
        ([1.0, 0.0, None], ["0", "1"]),
        ([True, False], ["False", "True"]),
    ],
)
def test_labels_are_those_of_the_rows_sorted(labels, expected):
    assert SequenceClassification().fit([{"label": label} for label in labels]).labels == expected


def test_given_labels_keep_their_order_and_may_be_named_by_number():
    task = SequenceClassification(labels=["neutral", "bad"])
    assert task.fit([{"label": "bad"}]).labels == task.labels
    assert [task.encoded_label({"label": label}) for label in ("bad", 1, "neutral", 0)] == [1, 1, 0, 0]
    assert SequenceClassification(labels=[2, 1]).encoded_label({"label": "1"}) == 1


def test_the_model_is_told_size_and_names():
    options = TASK.model_options()
    assert (options["num_labels"], options["id2label"][0], options["label2id"]["yes"]) == (3, "no", 2)
    assert SequenceClassification().model_options() == {}


@pytest.mark.parametrize("label", ["maybe", 7, -1, ["yes"]])
def test_a_label_outside_the_set_names_the_set_and_not_the_row(label):
    with pytest.raises(
        LabelError,
        match=r"'label' is (none of no, so, yes \(--task.labels names all labels\)|no single label but list)$",
    ):
        TASK.encode({"text": "secret", "label": label}, tokenizer(), 64)


@pytest.mark.parametrize("label", [None, "", float("nan")])
def test_a_missing_label_says_so(label):
    with pytest.raises(LabelError, match="no 'label'"):
        TASK.encode({"text": "x", "label": label}, tokenizer(), 64)


def test_a_missing_text_is_a_row_to_leave_out():
    with pytest.raises(RowError, match="no 'text'") as raised:
        TASK.encode({"text": None, "label": "yes"}, tokenizer(), 64)
    assert not isinstance(raised.value, LabelError)


def test_one_label_is_no_classification():
    with pytest.raises(LabelError, match="1 label"):
        SequenceClassification().fit(ROWS[:1])


@pytest.mark.parametrize("labels", [["a"], ["a", "a"]])
def test_given_labels_are_two_or_more_and_differ(labels):
    with pytest.raises(ValidationError, match="at least two labels, each named once"):
        SequenceClassification(labels=labels)


def test_a_pair_is_cut_as_the_tokenizer_does_it():
    row = {"text": "one two three", "text_pair": "four five six", "label": "yes"}
    expected = tokenizer()("one two three", "four five six", truncation=True, max_length=6)["input_ids"]
    assert TASK.encode(row, tokenizer(), 6)["input_ids"] == expected


def test_a_fitted_task_survives_writing_and_reading():
    assert Task.model_validate(TASK.model_dump(mode="json")) == TASK
