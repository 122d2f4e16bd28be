"""CoNLL's columns as sentences of tokens and tags."""

from __future__ import annotations

import pytest

from peftkit.data.sources import read
from peftkit.errors import DataError

CONLL_2003 = """-DOCSTART- -X- -X- O

EU NNP B-NP B-ORG
rejects VBZ B-VP O

# NN B-NP O
Peter NNP I-NP B-PER
"""


def put(folder, text, name="a.conll"):
    (folder / name).write_text(text)
    return str(folder / name)


@pytest.mark.parametrize("name", ["a.conll", "a.bio", "a.iob", "a.iob2"])
def test_first_column_words_last_column_tags_the_others_by_number(tmp_path, name):
    table = read(put(tmp_path, CONLL_2003, name))
    assert table.rows == [
        {"tokens": ["EU", "rejects"], "tags": ["B-ORG", "O"], "2": ["NNP", "VBZ"], "3": ["B-NP", "B-VP"]},
        {"tokens": ["#", "Peter"], "tags": ["O", "B-PER"], "2": ["NN", "NNP"], "3": ["B-NP", "I-NP"]},
    ]
    assert [table.place(row) for row in (0, 1)] == [f"{name} line 3", f"{name} line 6"]


def test_tabs_part_columns_where_there_are_some_and_comments_over_sentences_are_left_out(tmp_path):
    text = "# id 5239 domain=en\nNew York\tB-LOC\n\n\n# sent_id = 2\n# text = a\na\tO\r\nb\tO"
    assert read(put(tmp_path, text)).rows == [
        {"tokens": ["New York"], "tags": ["B-LOC"]},
        {"tokens": ["a", "b"], "tags": ["O", "O"]},
    ]


def test_words_alone_have_no_tags(tmp_path):
    assert read(put(tmp_path, "one\ntwo\n\nthree\n")).rows == [{"tokens": ["one", "two"]}, {"tokens": ["three"]}]


def test_a_line_of_another_width_is_named(tmp_path):
    text = "a O\n\nb O\nsecret\n"
    with pytest.raises(
        DataError, match=r"a\.conll line 4: a column count of 1 where the lines before have 2"
    ) as raised:
        read(put(tmp_path, text))
    assert "secret" not in str(raised.value)
