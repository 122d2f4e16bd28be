"""Exact match and F1 of answers follow SQuAD's definition, case by case."""

from __future__ import annotations

import math

import pytest

from peftkit.metrics import AnswerF1, ExactMatch, TextExactMatch, TextF1


def asked(*found):
    return [{"answers": answers, "answer": answer} for answers, answer in found]


@pytest.mark.parametrize(
    ("answers", "answer", "exact", "f1"),
    [
        (["Denver Broncos"], "the denver broncos!", 1, 1),  # case, article and punctuation do not count
        (["Denver Broncos"], "Broncos", 0, 2 / 3),  # one word of two, none too many
        (["in 1492", "1492"], "1492", 1, 1),  # the best of several
        (["a cat sat"], "the cat sat sat", 0, 4 / 5),  # a word counts as often as it is in both
        (["Denver"], "Boston", 0, 0),
        (["Denver"], "", 0, 0),
        ([], "", 1, 1),  # no answer, and none given
        ([], "Denver", 0, 0),
        (["the"], "", 1, 1),  # nothing is left of it: as if there were no answer
        (["U.S."], "us", 1, 1),  # punctuation goes without leaving a space
        (["theatre"], "theatre", 1, 1),  # an article is a whole word
        (["東京"], "東京", 1, 1),
    ],
)
def test_one_question(answers, answer, exact, f1):
    records = asked((answers, answer))
    assert ExactMatch().compute(records)["exact_match"] == exact
    assert AnswerF1().compute(records)["qa_f1"] == pytest.approx(f1)


def test_the_parts_are_told_where_some_have_no_answer():
    records = asked((["x y"], "x"), (["z"], "z"), ([], "w"), ([], ""), ([], ""))
    assert ExactMatch().compute(records) == pytest.approx(
        {"exact_match": 3 / 5, "exact_match/has_answer": 1 / 2, "exact_match/no_answer": 2 / 3}
    )
    assert AnswerF1().compute(records) == pytest.approx(
        {"qa_f1": (2 / 3 + 1 + 2) / 5, "qa_f1/has_answer": (2 / 3 + 1) / 2, "qa_f1/no_answer": 2 / 3}
    )
    assert list(ExactMatch().compute(records[:2])) == ["exact_match"]
    alone = ExactMatch().compute(records[2:])
    assert math.isnan(alone["exact_match/has_answer"]) and alone["exact_match"] == alone["exact_match/no_answer"]


def test_unknown_answers_are_left_out():
    assert ExactMatch().compute(asked((None, "x"), (["x"], "x"))) == {"exact_match": 1}
    assert math.isnan(AnswerF1().compute(asked((None, "x")))["qa_f1"])


def test_written_texts_are_compared_the_same_way():
    records = [{"reference": "Denver Broncos", "generated": "Broncos"}, {"reference": ["x", "y"], "generated": "Y."}]
    assert TextExactMatch().compute(records) == {"text_exact_match": 0.5}
    assert TextF1().compute(records) == pytest.approx({"text_f1": 5 / 6})
