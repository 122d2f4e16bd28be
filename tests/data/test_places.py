"""Where a prepared row was read: its own file and line, whatever was held out, joined, copied or left blank on the way."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from peftkit.config.sections import Augment, Data, Source
from peftkit.data.places import places_of, write_places
from peftkit.data.prepare import Prepared, prepare
from peftkit.data.sources import Table
from peftkit.tasks import CausalLM, SequenceClassification
from tests.tiny import tokenizer


def put(folder: Path, name: str, texts: list[str]) -> str:
    """A line a text; an empty one is a blank line."""
    (folder / name).write_text("".join(f"{json.dumps({'text': text}) if text else ''}\n" for text in texts))
    return str(folder / name)


@pytest.fixture
def lines() -> list[str]:
    return [f"one more text of several words, the number {number}" if number % 3 else "" for number in range(1, 31)]


def prepared(cache: Path, **words) -> Prepared:
    return prepare(Data(cache=cache / "cache", **words), CausalLM(), tokenizer(), None, 42)


def check(found: Prepared, split: str, expected) -> None:
    """Every window's row stands where its text says that it was written."""
    store = found.store(split)
    for row in set(map(int, store.row)):
        assert found.places(split, [row]) == expected(found.rows(split)[row]["text"])


def test_blank_lines_and_rows_held_out_do_not_shift_it(tmp_path, lines):
    found = prepared(tmp_path, train=put(tmp_path, "a.jsonl", lines), holdout=0.3)
    for split in ("train", "validation"):
        check(found, split, lambda text: f"a.jsonl line {text.split()[-1]}")
    assert found.places("train", []) == ""


def test_each_source_of_a_mixture_keeps_its_own(tmp_path, lines):
    sources = [
        Source(path=put(tmp_path, "a.jsonl", lines)),
        Source(path=put(tmp_path, "b.jsonl", ["b " + text for text in lines if text])),
    ]
    found = prepared(tmp_path, mixture=sources, holdout=0.2)

    def place(text: str) -> str:
        number = int(text.split()[-1])
        return f"b.jsonl line {number - number // 3}" if text.startswith("b ") else f"a.jsonl line {number}"

    check(found, "train", place)


def test_changed_copies_are_where_their_row_is(tmp_path, lines):
    augment = Augment(copies=2, deletion=0.3)
    file = put(tmp_path, "a.jsonl", lines)
    columns = {"text": "text", "label": "text"}
    data = Data(cache=tmp_path / "cache", train=file, augment=augment, holdout=0, columns=columns)
    found = prepare(data, SequenceClassification(), tokenizer(), None, 42)
    numbers = [found.places("train", [row]) for row in range(len(found.rows("train")))]
    assert len(numbers) > len(set(numbers)) == len([text for text in lines if text])
    originals = {f"a.jsonl line {number}" for number, text in enumerate(lines, start=1) if text}
    assert set(numbers) == originals


def test_several_rows_in_words(tmp_path):
    places = ["one.csv row 3", "two.csv row 9", "one.csv row 1", "pictures/cat.png", *(f"x row {n}" for n in range(7))]
    write_places(tmp_path, Table("all", [{}] * len(places), range(1, len(places) + 1), "row", places))
    assert places_of(tmp_path, [2, 0, 0, 1]) == "one.csv row 1, 3, two.csv row 9"
    assert places_of(tmp_path, [3]) == "pictures/cat.png"
    assert places_of(tmp_path, range(len(places))).endswith("x row 0, 1, 2, 3 and 3 more")
