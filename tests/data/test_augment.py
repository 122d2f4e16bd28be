"""Changed copies: of training rows alone, the same for a seed and a row, never empty, never the row itself."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peftkit.config.sections import Augment
from peftkit.data.augment import augmented, change, read_synonyms
from peftkit.data.sources import Table

WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "the", "lazy", "dog"]
SURE = {"deletion": 0, "swap": 0, "synonym": 0}


def table(*texts: str) -> Table:
    return Table("a.csv", [{"text": text, "label": "x"} for text in texts], range(2, len(texts) + 2), "line")


def changed(text: str, seed: int = 0, synonyms=None, **shares) -> str:
    return change(text, Augment(**{**SURE, **shares}), synonyms or {}, random.Random(seed))


@given(st.text(), st.integers(0, 9))
def test_a_text_is_never_emptied(text, seed):
    found = changed(text, seed, deletion=0.99, swap=0.5, synonym=0.5)
    assert bool(found.split()) == bool(text.split())


def test_each_way_does_what_it_says():
    text = " ".join(WORDS)
    assert sorted(changed(text, swap=0.5).split()) == sorted(WORDS) != changed(text, swap=0.5).split()
    left = iter(WORDS)
    assert all(word in left for word in changed(text, deletion=0.4).split())
    assert len(changed(text, deletion=0.4).split()) < 9
    assert changed("A Big, big dog", synonyms={"big": ["large"]}, synonym=0.99) == "A Large, large dog"
    assert changed(text) == text


def test_marks_of_entities_stay_where_they_are():
    found = changed("<e1>one</e1> two [E2] three four [/E2]", deletion=0.99, swap=0.9)
    assert found == "<e1>one</e1> [E2] [/E2]"


def test_copies_stand_behind_their_rows_and_have_their_numbers():
    found = augmented(table(" ".join(WORDS), "alone", "two words here"), Augment(copies=2, swap=0.5), ("text",), seed=1)
    rows, numbers = list(found.rows), list(found.numbers)
    assert rows[0]["text"] == " ".join(WORDS)
    assert numbers[:4] == [2, 2, 2, 3]
    assert [row["text"] for row, number in zip(rows, numbers, strict=True) if number == 3] == ["alone"]
    assert len({row["text"] for row in rows[:3]}) == 3
    assert all(row["label"] == "x" for row in rows)
    assert found.rows[1:3] == rows[1:3]


def test_a_copy_depends_on_the_seed_and_its_row_alone():
    texts = [f"{' '.join(WORDS)} {number}" for number in range(6)]
    whole = table(*texts)
    settings, columns = Augment(copies=1), ("text",)
    every = {row["text"] for row in augmented(whole, settings, columns, 1).rows}
    some = {row["text"] for row in augmented(whole.pick([1, 4]), settings, columns, 1).rows}
    assert some < every
    assert {row["text"] for row in augmented(whole, settings, columns, 2).rows} != every


@pytest.mark.parametrize("separator", ["\t", ", "])
def test_a_line_of_the_table_is_words_for_each_other(tmp_path, separator):
    (tmp_path / "words").write_text(separator.join(["Big", "large", "very big"]) + "\n")
    assert read_synonyms(tmp_path / "words") == {
        "big": ["large", "very big"],
        "large": ["Big", "very big"],
        "very big": ["Big", "large"],
    }


def test_a_row_whose_columns_count_characters_has_no_copy() -> None:
    table = Table("rows", [{"text": "one two three four", "head": [0, 3]}, {"text": "one two three four"}], [1, 2])
    made = augmented(table, Augment(copies=1, deletion=0.9), ["text"], 0, ["head"])
    assert list(made.numbers) == [1, 2, 2]
