"""SQuAD's JSON as a row a question."""

from __future__ import annotations

import json

import pytest

from peftkit.data.sources import read
from peftkit.errors import DataError

ANSWERS = [{"text": "a", "answer_start": 3}, {"text": "b", "answer_start": 0}]
QUESTIONS = [
    {"id": "1", "question": "q1", "answers": ANSWERS},
    {"id": "2", "question": "q2", "answers": [], "is_impossible": True, "plausible_answers": ANSWERS},
]
PARAGRAPHS = [
    {"context": "c1", "qas": QUESTIONS},
    {"context": "c2", "qas": []},
    {"context": "c3", "qas": QUESTIONS[:1]},
]


def squad(folder, *articles):
    path = folder / "squad.json"
    path.write_text(json.dumps({"version": "v2.0", "data": list(articles)}))
    return str(path)


def test_a_row_a_question_as_the_hub_has_them(tmp_path):
    answers = {"text": ["a", "b"], "answer_start": [3, 0]}
    none = {"text": [], "answer_start": []}
    assert read(squad(tmp_path, {"title": "t", "paragraphs": PARAGRAPHS})).rows == [
        {"id": "1", "title": "t", "context": "c1", "question": "q1", "answers": answers},
        {"id": "2", "title": "t", "context": "c1", "question": "q2", "answers": none},
        {"id": "1", "title": "t", "context": "c3", "question": "q1", "answers": answers},
    ]


@pytest.mark.parametrize(
    ("paragraph", "message"),
    [
        ({"qas": []}, r"squad\.json data\[0\]\.paragraphs\[0\]: no 'context'"),
        ({"context": "secret"}, r"squad\.json data\[0\]\.paragraphs\[0\]: no 'qas'"),
        ({"context": "secret", "qas": {}}, r"paragraphs\[0\]: 'qas' is no list"),
        ({"context": "c", "qas": [{"answers": []}]}, r"squad\.json row 1 \(.*\[0\]\): no 'question'"),
        ({"context": "c", "qas": [QUESTIONS[0], {"question": "secret"}]}, r"squad\.json row 2 .*: no 'answers'"),
        ({"context": "c", "qas": ["secret"]}, r"squad\.json row 1 .*: no 'answers'"),
        ({"context": "c", "qas": [{"question": "q", "answers": [{"text": "secret"}]}]}, r"row 1 .*: no 'answer_start'"),
    ],
)
def test_what_is_missing_is_said_with_its_place(tmp_path, paragraph, message):
    with pytest.raises(DataError, match=message) as raised:
        read(squad(tmp_path, {"title": "t", "paragraphs": [paragraph]}))
    assert "secret" not in str(raised.value)
