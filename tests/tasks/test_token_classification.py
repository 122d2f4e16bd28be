"""Words, their tags and their tokens; long rows in windows; schemes of tags."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close
from transformers import PreTrainedTokenizerFast

from peftkit.errors import ModelError
from peftkit.metrics import Metric
from peftkit.tasks import Task, TokenClassification
from peftkit.tasks.base import IGNORED, LabelError, RowError
from peftkit.tasks.schemes import is_valid, scheme_of, written
from peftkit.tasks.words import Words, owners, windows_of
from tests.tiny import tiny, tokenizer

ROWS = [
    {"tokens": ["the", "capital", "of", "France", "is", "Paris"], "tags": ["O", "O", "O", "B-LOC", "O", "B-LOC"]},
    {"tokens": ["Write"], "tags": ["O"]},
    {"tokens": ["quick", "brown", "fox"], "tags": ["B-ANIMAL", "I-ANIMAL", "I-ANIMAL"]},
]
LONG = {"tokens": [f"word{number}" for number in range(60)], "tags": ["O", "B-LOC"] * 30}
TASK = TokenClassification().fit(ROWS)


def bert_like() -> PreTrainedTokenizerFast:
    """A tokenizer that puts marks around a text, as encoders' do, and a space before its first word."""
    from tokenizers.pre_tokenizers import ByteLevel
    from tokenizers.processors import TemplateProcessing

    made = tokenizer()
    made.backend_tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=True)
    made.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return made


def scored(task, rows, model, processor, max_length=64, stride=None):
    """Judged records of all rows, scored a window at a time."""
    found = []
    for row in rows:
        batches = [task.collate([window], processor) for window in task.windows(row, processor, max_length, stride)]
        records = [record for batch in batches for record in task.score(model(**task.inputs(batch)), batch)]
        found.append(task.judge(row, records, processor))
    return found


@pytest.mark.parametrize("row", [*ROWS, LONG])
def test_a_word_is_labelled_at_its_first_sub_word_as_the_tokenizers_own_word_numbers_say(row):
    processor = bert_like()
    features = TASK.encode(row, processor, 500)
    split = processor(row["tokens"], is_split_into_words=True)
    numbers = split.word_ids()
    assert features["input_ids"] == split["input_ids"]
    firsts = [at for at, one in enumerate(numbers) if one is not None and numbers.index(one) == at]
    assert [at for at, label in enumerate(features["labels"]) if label != IGNORED] == firsts
    assert [TASK.labels[features["labels"][at]] for at in firsts] == row["tags"]


def test_all_sub_words_are_labelled_if_asked_and_predicted_at_the_first():
    task = TASK.model_copy(update={"label_all_subwords": True})
    features = task.encode(ROWS[2], bert_like(), 64)
    assert features["labels"] == [IGNORED, *[task.labels.index(tag) for tag in _spread(ROWS[2])], IGNORED]
    assert [word for word in features["words"] if word] == [1, 2, 3]


def _spread(row):
    numbers = bert_like()(row["tokens"], is_split_into_words=True).word_ids()
    return [row["tags"][number] for number in numbers if number is not None]


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("stride", [None, 0, 3])
def test_in_windows_every_word_counts_once_where_it_has_most_around_it(stride, side):
    processor = bert_like()
    processor.truncation_side = side
    words = Words.given(LONG["tokens"])
    windows = windows_of(words, processor, 16, stride)
    owner = owners(windows)
    assert sorted(owner) == list(range(60)) and processor.truncation_side == side
    for word, number in owner.items():
        first = min(place for one in windows for place, w in zip(one.places, one.words, strict=True) if w == word)
        around = {
            at: min(one.places.index(first), len(one.places) - 1 - one.places.index(first))
            for at, one in enumerate(windows)
            if first in one.places
        }
        assert around[number] == max(around.values())
    features = TASK.windows(LONG, processor, 16, stride)
    assert sum(label != IGNORED for one in features for label in one["labels"]) == 60
    assert all(len(one["input_ids"]) <= 16 for one in features)


def test_windows_of_a_row_are_judged_as_one_row():
    model, processor = tiny("bert", head="token_classification", num_labels=len(TASK.labels)), bert_like()
    rows = [LONG, *ROWS]
    found = scored(TASK, rows, model, processor, max_length=16, stride=4)
    assert [record["tags"] for record in found] == [row["tags"] for row in rows]
    assert [len(record["predicted_tags"]) for record in found] == [len(row["tokens"]) for row in rows]
    assert [record["targets"] for record in found] == [60, 6, 1, 3]
    hits = [sum(a == b for a, b in zip(r["tags"], r["predicted_tags"], strict=True)) for r in found]
    assert [record["correct"] for record in found] == hits
    assert 0 <= Metric.model_validate("entity_f1").fit(TASK).compute(found)["entity_f1"] <= 1


def test_a_batch_costs_what_its_rows_cost_and_a_blank_one_nothing():
    model, processor = tiny("bert", head="token_classification", num_labels=len(TASK.labels)), bert_like()
    batch = TASK.collate([TASK.encode(row, processor, 64) for row in ROWS], processor)
    outputs = model(**TASK.inputs(batch))
    logits, labels = outputs.logits.flatten(0, 1), batch["labels"].flatten()
    assert_close(TASK.loss(outputs, batch), torch.nn.functional.cross_entropy(logits, labels, reduction="sum"))
    assert TASK.targets(batch) == 10
    records = TASK.score(outputs, batch)
    assert_close(sum(record["loss"] for record in records), TASK.loss(outputs, batch).item())
    assert [r["predicted_tags"] for r in scored(TASK, ROWS, model, processor)] == [r["predicted_tags"] for r in records]
    blank = TASK.blank(batch)
    loss = TASK.loss(model(**TASK.inputs(blank)), blank)
    loss.backward()
    assert (TASK.targets(blank), loss.item()) == (0, 0.0)


def test_weights_and_smoothing_are_those_of_the_tags():
    task = TokenClassification(class_weights="balanced", label_smoothing=0.1).fit(ROWS)
    assert task.labels == ["O", "B-ANIMAL", "B-LOC", "I-ANIMAL"]
    assert task.class_weights == {"O": 0.5, "B-ANIMAL": 2.5, "B-LOC": 1.25, "I-ANIMAL": 1.25}
    batch = task.collate([task.encode(row, bert_like(), 64) for row in ROWS], bert_like())
    logits = torch.randn(*batch["labels"].shape, 4, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), batch["labels"].flatten(), weight=torch.tensor([0.5, 2.5, 1.25, 1.25]),
        label_smoothing=0.1, reduction="sum",
    )  # fmt: skip
    assert_close(task.loss(SimpleNamespace(logits=logits), batch), expected)


def test_entities_of_a_text_become_tags_of_its_words():
    row = {"text": "Ms. Ada Lovelace, London", "entities": [{"start": 4, "end": 16, "label": "PER"}, [18, 24, "LOC"]]}
    task = TokenClassification().fit([row])
    words = Words.found(row["text"])
    assert [row["text"][start:end] for start, end in words.spans] == ["Ms", ".", "Ada", "Lovelace", ",", "London"]
    assert (task.scheme, task.tags_of(row, words)) == ("IOB2", ["O", "O", "B-PER", "I-PER", "O", "B-LOC"])
    ends = task.model_copy(update={"scheme": "IOBES"})
    assert ends.tags_of(row, words) == ["O", "O", "B-PER", "E-PER", "O", "S-LOC"]


def test_scripts_without_spaces_are_tagged_sign_by_sign():
    words = Words.found("在Paris见")
    assert words.spans == [(0, 1), (1, 6), (6, 7)]


@pytest.mark.parametrize(
    ("tags", "kept"),
    [
        (["B-A", "I-A", "O", "B-A", "B-A"], ["IOB2"]),
        (["I-A", "B-A", "O", "I-B"], ["IOB1"]),
        (["B-A", "E-A", "S-B", "O"], ["IOBES"]),
        (["B-A", "I-B"], []),
        (["B-A", "I-A", "O"], ["IOB2"]),
        (["I-A", "I-A"], ["IOB1"]),
        (["B-A", "O"], ["IOB2"]),
        (["I-A", "E-A"], []),
        (["S-A", "S-A"], ["IOBES"]),
        (["O", "O"], ["IOB1", "IOB2", "IOBES"]),
        (["O-A"], []),
        (["B"], []),
    ],
)
def test_which_schemes_a_row_keeps(tags, kept):
    assert [scheme for scheme in ("IOB1", "IOB2", "IOBES") if is_valid(tags, scheme)] == kept


@pytest.mark.parametrize("scheme", ["IOB1", "IOB2", "IOBES"])
def test_written_tags_keep_their_scheme_and_seqeval_reads_the_entities_back(scheme):
    from seqeval import scheme as schemes

    entities = [(0, 1, "A"), (1, 3, "A"), (4, 5, "B"), (5, 8, "A")]
    tags = written(entities, 9, scheme)
    assert is_valid(tags, scheme)
    found = schemes.Entities([tags], getattr(schemes, scheme)).entities[0]
    assert [(one.start, one.end, one.tag) for one in found] == entities


def test_the_scheme_is_the_one_that_all_rows_keep():
    assert scheme_of([["B-A", "I-A"], ["O"]]) == "IOB2"
    assert scheme_of([["I-A"], ["I-A", "B-A"]]) == "IOB1"
    assert scheme_of([["NOUN", "VERB"]]) is None
    nouns = TokenClassification().fit([{"tokens": ["a", "b"], "tags": ["NOUN", "VERB"]}])
    assert (nouns.scheme, nouns.default_metrics()) == ("none", ("loss", "token_accuracy"))
    assert "entity_f1" in TASK.default_metrics()


@pytest.mark.parametrize(
    ("row", "problem", "message"),
    [
        ({"tokens": ["secret"], "tags": ["I-LOC"]}, LabelError, "'tags' break IOB2 .--task.scheme none"),
        (
            {"tokens": ["secret"], "tags": ["B-X"]},
            LabelError,
            r"one of its tags is none of O, B-ANIMAL, B-LOC, I-ANIMAL \(--task.labels names all labels\)$",
        ),
        ({"tokens": ["secret"], "tags": None}, LabelError, "no 'tags'$"),
        ({"text": "secret"}, LabelError, "no 'entities'$"),
        ({"tokens": ["secret", "b"], "tags": ["O"]}, RowError, "not as many tags as words$"),
        ({"tokens": [], "tags": []}, RowError, "no 'tokens'$"),
        ({"tokens": "secret", "tags": ["O"]}, RowError, "'tokens' is no list of words$"),
        ({"tokens": ["", ""], "tags": ["O", "O"]}, RowError, "no token in its words$"),
        ({"text": "secret", "entities": [[0, 99, "LOC"]]}, LabelError, "an entity lies outside its text$"),
        ({"text": "secret", "entities": [[0, 3, "LOC"]]}, RowError, "does not begin and end with a word$"),
        ({"text": "a secret", "entities": [[0, 8, "LOC"], [2, 8, "LOC"]]}, RowError, "its entities overlap$"),
    ],
)
def test_a_wrong_row_says_what_is_wrong_and_not_the_row(row, problem, message):
    with pytest.raises(problem, match=message) as raised:
        TASK.windows(row, bert_like(), 64, None)
    assert type(raised.value) is problem and "secret" not in str(raised.value)


def test_a_word_without_a_tag_or_without_a_token_takes_no_part():
    row = {"tokens": ["", "Paris", "is"], "tags": ["O", None, "B-LOC"]}
    model = tiny("bert", head="token_classification", num_labels=len(TASK.labels))
    (record,) = scored(TASK, [row], model, bert_like())
    assert (record["targets"], record["tags"], record["predicted_tags"][0]) == (1, ["O", "B-LOC"], "O")


def test_a_row_to_be_predicted_has_a_tag_for_every_word():
    model = tiny("bert", head="token_classification", num_labels=len(TASK.labels))
    for row, count in (({"tokens": ["Paris", "is"]}, 2), ({"text": "Paris, is"}, 3)):
        (record,) = scored(TASK, [TASK.unlabelled(row)], model, bert_like())
        assert (record["targets"], record["tags"], len(record["predicted_tags"])) == (0, None, count)


def test_numbers_name_tags_by_place():
    task = TokenClassification(labels=["O", "B-LOC"])
    assert task.tags_of({"tokens": ["a", "b"], "tags": [1, IGNORED]}, Words.given(["a", "b"])) == ["B-LOC", None]


def test_a_slow_tokenizer_is_refused_in_a_sentence():
    with pytest.raises(ModelError, match="needs a fast tokenizer"):
        TASK.encode(ROWS[0], SimpleNamespace(is_fast=False), 64)


def test_a_fitted_task_survives_writing_and_reading():
    assert Task.model_validate(TASK.model_dump(mode="json")) == TASK
    assert TokenClassification(scheme="iob2").scheme == "IOB2"
    pieces = TASK.pieces(TASK.encode(ROWS[0], bert_like(), 64), bert_like())
    assert [text.rpartition("/")[2] for text, target in pieces if target] == ROWS[0]["tags"]
