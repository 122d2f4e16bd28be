"""Mixtures, copies, balance and splits through `prepare`: what is learnt, what is held out, what the cache's key covers."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

import pytest

from peftkit.config.sections import Augment, Data
from peftkit.data.batches import evaluation_batches
from peftkit.data.encode import Encoder, encode, encoded
from peftkit.data.fingerprint import key
from peftkit.data.prepare import prepare
from peftkit.data.sources import Table
from peftkit.errors import DataError
from peftkit.tasks import CausalLM, Chat, Seq2Seq, SequenceClassification
from tests.tiny import tokenizer

LABELS = ["a"] * 30 + ["b"] * 10


def put(folder: Path, name: str, rows: list[dict[str, Any]]) -> str:
    (folder / name).write_text("\n".join(json.dumps(row) for row in rows))
    return str(folder / name)


@pytest.fixture
def data(tmp_path):
    put(tmp_path, "texts.jsonl", [{"text": f"text {number}"} for number in range(30)])
    put(tmp_path, "chats.jsonl", [{"q": f"say {number}", "response": "yes"} for number in range(10)])
    put(tmp_path, "labels.jsonl", [{"text": f"some words {n}", "label": one} for n, one in enumerate(LABELS)])
    put(tmp_path, "other.jsonl", [{"text": "other words"}])

    def settings(**words):
        mixture = [
            {"path": str(tmp_path / "texts.jsonl")},
            {"path": str(tmp_path / "chats.jsonl"), "task": "chat", "columns": {"prompt": "q"}},
        ]
        named = {k: str(tmp_path / v) if k in ("train", "validation") else v for k, v in words.items()}
        return Data.model_validate(
            {"cache": tmp_path / "cache"} | ({} if "train" in words else {"mixture": mixture}) | named
        )

    return settings


def prepared(data: Data, task=None, seed=42, **words):
    return prepare(data, task or CausalLM(), tokenizer(), None, seed, **words)


def test_sources_are_read_by_their_own_tasks_and_held_out_alike(data):
    found = prepared(data(holdout=0.2), by="source")
    sources = {split: Counter(row["source"] for row in found.rows(split)) for split in ("train", "validation")}
    assert sources == {"train": {"texts": 24, "chats": 8}, "validation": {"texts": 6, "chats": 2}}
    rows = found.rows("train")
    for window in range(len(found.train)):
        text = tokenizer().decode(found.train[window]["input_ids"])
        row = rows[found.train.row[window]]
        assert ("<|user|>" in text) == (row["source"] == "chats")
        assert found.train.group[window] == ["texts", "chats"].index(row["source"])


def test_an_epoch_has_each_sources_share_and_the_cache_is_not_built_again(data, tmp_path):
    prepared(data(holdout=0.2))
    found = prepared(data(holdout=0.2, temperature=1e9))
    assert (found.train.epoch, found.train.draws.counts) == (32, (16, 16))
    assert found.report.lines()[-1] == "train: an epoch learns 32 windows: 16 of texts's 24, 16 of chats's 8"
    assert len(list((tmp_path / "cache" / "data").glob("*.lock"))) == 1


def test_rows_of_a_mixture_are_named_by_their_own_files(data, tmp_path):
    put(tmp_path, "texts.jsonl", [{"text": "good"}, {"text": ""}, {"text": "good too"}])
    assert "1 row left out (no 'text'): texts.jsonl line 2" in "\n".join(prepared(data(holdout=0)).report.lines())


def test_files_beside_a_mixture_are_sources_too(data):
    found = prepared(data(validation="other.jsonl"), by="source")
    assert [row["source"] for row in found.rows("validation")] == ["other.jsonl"]


@pytest.mark.parametrize(("balance", "epoch", "counts"), [("oversample", 60, (30, 30)), ("weighted", 40, (20, 20))])
def test_rare_labels_are_learnt_as_often(data, balance, epoch, counts):
    found = prepared(data(train="labels.jsonl", holdout=0, balance=balance), SequenceClassification())
    assert (len(found.train), found.train.epoch, found.train.draws.counts) == (40, epoch, counts)
    assert f"an epoch learns {epoch} windows: {counts[0]} of a's 30, {counts[1]} of b's 10" in found.report.lines()[-1]


def test_balanced_weights_are_of_the_rows_that_are_learnt(data):
    """Those held out are not known: over the training rows the weights' mean is 1."""
    settings = data(train="labels.jsonl", holdout=0.5)
    found = prepared(settings, SequenceClassification(class_weights="balanced"))
    weights = [found.task.class_weights[row["label"]] for row in found.rows("train")]
    counts = Counter(row["label"] for row in found.rows("train"))
    assert counts["a"] != 3 * counts["b"]
    assert sum(weights) == pytest.approx(len(weights))
    assert counts["a"] * found.task.class_weights["a"] == pytest.approx(10)


def test_copies_are_made_of_training_rows_alone(data):
    settings = data(train="labels.jsonl", holdout=0.25, augment={"copies": 2, "swap": 0.5})
    found = prepared(settings, SequenceClassification())
    held = {row["text"] for row in found.rows("validation")}
    assert (len(found.validation), len(found.train)) == (10, 90)
    learnt = {tuple(sorted(row["text"].split())) for row in found.rows("train")}
    assert not learnt & {tuple(sorted(text.split())) for text in held}
    assert "train: 60 of the 90 rows read are changed copies (--data.augment)" in found.report.lines()


def test_what_was_held_out_is_recorded_and_the_same_again(data, tmp_path):
    settings = data(train="labels.jsonl", split="stratified", holdout=0.1, test_holdout=0.2)
    found = prepared(settings, SequenceClassification())
    record = json.loads(found.splits.read_text())
    held = record["train"][0]["held_out"]
    assert {split: Counter(LABELS[line - 1] for line in lines) for split, lines in held.items()} == {
        "test": {"a": 6, "b": 2},
        "validation": {"a": 3, "b": 1},
    }
    assert [row["text"] for row in found.rows("test")] == [f"some words {line - 1}" for line in held["test"]]
    elsewhere = settings.model_copy(update={"cache": tmp_path / "elsewhere"})
    assert json.loads(prepared(elsewhere, SequenceClassification()).splits.read_text()) == record


def test_the_key_has_what_matters_and_nothing_else(data):
    def made(seed=1, **words):
        settings = data(**({"train": "labels.jsonl"} | words))
        return key(settings, SequenceClassification(), tokenizer(), 99, seed)

    given = {"validation": "other.jsonl"}
    same = [
        {},
        {"balance": "weighted"},
        {"workers": 2},
        {"temperature": 2},
        {"augment": {"deletion": 0.5}},
        {"fold": 1},
    ]
    assert len({made(**one) for one in same if one != {"fold": 1}}) == 1
    assert made(**given) == made(**given, seed=2) == made(**given, holdout=0.5) == made(**given, split="stratified")
    assert made(split="time", split_by="t") == made(split="time", split_by="t", seed=2)
    other = [
        {},
        {"augment": {"copies": 1}},
        {"split": "stratified"},
        {"test_holdout": 0.1},
        {"folds": 3},
        {"seed": 2},
        given,
    ]
    other += [{"folds": 3, "fold": 1}, {"truncate": "left"}, {"stride": 3}, {**given, "augment": {"copies": 1}}]
    assert len({made(**one) for one in other}) == len(other)


def test_settings_of_the_loss_encode_nothing_anew_and_are_those_asked_for(data):
    settings = data(train="labels.jsonl")
    first = prepare(settings, SequenceClassification(focal=1), tokenizer(), 99, 1)
    again = prepare(settings, SequenceClassification(focal=2, label_smoothing=0.1), tokenizer(), 99, 1)
    assert (again.task.focal, again.task.label_smoothing, again.task.labels) == (2, 0.1, first.task.labels)
    assert again.folder == first.folder
    assert (
        prepare(settings, SequenceClassification(class_weights="balanced"), tokenizer(), 99, 1).folder != first.folder
    )


def test_a_mixtures_weights_are_not_in_the_key_but_its_sources_are(data):
    settings = data()
    first, second = settings.mixture
    changes = [
        [first.model_copy(update={"weight": 3}), second],
        [first.model_copy(update={"name": "other"}), second],
        [first, second.model_copy(update={"task": None})],
        [first],
        [second, first],
    ]
    keys = [
        key(settings.model_copy(update={"mixture": one}), CausalLM(), tokenizer(), 99, 1)
        for one in [[first, second], *changes]
    ]
    assert keys[0] == keys[1]
    assert len(set(keys)) == len(changes)


def test_a_synonym_table_is_in_the_key_by_what_it_says(data, tmp_path):
    keys = []
    for content, name in (("a,b", "one"), ("a,b", "two"), ("a,c", "two")):
        (tmp_path / name).write_text(content)
        augment = Augment(copies=1, synonyms=tmp_path / name)
        settings = data(train="labels.jsonl").model_copy(update={"augment": augment})
        keys.append(key(settings, CausalLM(), tokenizer(), 99, 1))
    assert keys[0] == keys[1] != keys[2]


class Windowed(CausalLM, name=None):  # type: ignore[call-arg]
    """Three tokens a window, one of which the next one has again."""

    metrics: ClassVar[tuple[str, ...]] = ("loss",)

    def windows(self, row, processor, max_length, stride):
        ids = self.encode(row, processor, 10_000)["input_ids"]
        step = max_length - (stride or 0)
        cut = [ids[at : at + max_length] for at in range(0, max(1, len(ids) - (stride or 0)), step)]
        return [{"input_ids": part, "labels": part} for part in cut]


def windowed(tmp_path) -> tuple[Any, Any]:
    rows = [{"text": "x" * length} for length in (3, 9, 1, 6)]
    encoder = Encoder(Windowed(), tokenizer(), 4, stride=1)
    report = encode(Table("a.csv", rows, range(1, 5)), encoder, tmp_path / "rows")
    from peftkit.data.store import Store

    return report, Store(tmp_path / "rows")


def test_windows_are_counted_and_belong_to_rows(tmp_path):
    report, store = windowed(tmp_path)
    assert (report.rows, report.kept, report.windows) == (4, 4, len(store))
    assert len(store) > 4
    assert report.lines(4)[0].startswith(f"4 rows in {len(store)} windows, ")
    assert sorted(set(store.row.tolist())) == [0, 1, 2, 3]
    assert report.cut == 0


def test_an_evaluation_of_the_first_rows_has_all_their_windows(tmp_path):
    _, store = windowed(tmp_path)
    found = [w for ws, _ in evaluation_batches(store, Windowed(), tokenizer(), 2, 1, 0, rows=2) for w in ws]
    assert sorted(found) == [window for window in range(len(store)) if store.row[window] < 2]


@pytest.mark.parametrize(("side", "kept"), [("right", "0 1 2"), ("left", "7 8 9")])
def test_the_end_that_is_cut_is_the_one_that_was_asked_for(side, kept):
    task = SequenceClassification(labels=["a", "b"])
    encoder = Encoder(task, tokenizer(), len(tokenizer()("0 1 2")["input_ids"]), truncate=side)
    (done,) = encoded([{"text": "0 1 2 3 4 5 6 7 8 9", "label": "a"}], encoder, 1)
    assert tokenizer().decode(done.windows[0][0]["input_ids"]).strip() == kept
    assert done.cut == 1


def test_a_target_that_lost_its_end_and_a_chat_that_lost_turns_are_cut():
    ended = len(tokenizer()("a longer line")["input_ids"]) + 1
    for longest, cut in ((ended, 0), (ended - 1, 1)):
        writes = Encoder(Seq2Seq(max_target_length=longest, decoder_start=0), tokenizer(), 64)
        (done,) = encoded([{"source": "a", "target": "a longer line"}], writes, 1)
        assert (len(done.windows[0][0]["labels"]), done.cut) == (longest, cut)
    turns = [{"role": role, "content": "and so on"} for role in ("user", "assistant") * 3]
    (whole,) = encoded([{"messages": turns}], Encoder(Chat(), tokenizer(), 128, truncate="left"), 1)
    size = len(whole.windows[0][0]["input_ids"])
    for max_length, cut in ((size, 0), (size - 1, 1)):
        (done,) = encoded([{"messages": turns}], Encoder(Chat(), tokenizer(), max_length, truncate="left"), 1)
        assert done.cut == cut
    assert len(done.windows[0][0]["input_ids"]) < size - 1, "a whole turn is lost"


def plain(rows):
    return [[{name: [*value] for name, value in window.items()} for window in windows] for windows in rows]


def test_several_processes_encode_what_one_does():
    rows = [{"text": f"text {number}" if number % 7 else ""} for number in range(1100)]
    encoder = Encoder(CausalLM(), tokenizer(), 9)
    alone, together = (list(encoded(rows, encoder, workers)) for workers in (1, 2))
    assert [plain(part.windows) for part in alone] == [plain(part.windows) for part in together]
    assert [list(part.problems) for part in alone] == [list(part.problems) for part in together]
    assert [part.cut for part in alone] == [part.cut for part in together]


def test_labels_that_are_several_cannot_be_balanced(data, tmp_path):
    put(tmp_path, "several.jsonl", [{"text": f"t {n}", "label": ["a", "b"] if n % 2 else ["a"]} for n in range(8)])
    with pytest.raises(DataError, match=r"--data\.balance weighted: the training rows have not one label each"):
        prepared(data(train="several.jsonl", balance="weighted", holdout=0), SequenceClassification())
