"""ROUGE is the mean of rouge-score's F1 over the texts."""

from __future__ import annotations

import math
from statistics import fmean

import pytest
from rouge_score.rouge_scorer import RougeScorer

from peftkit.metrics import Rouge

SAID = ["The cats sat on the mat.\nIt purred.", "A dog barked", "", "nothing shared"]
TRUE = ["The cat sat on a mat.\nThen it was purring.", "the dog barked twice", "Nobody came.", "x y z"]
OURS = {"rouge": "rougeL", "rouge/1": "rouge1", "rouge/2": "rouge2", "rouge/Lsum": "rougeLsum"}


def written(said, true):
    return [{"generated": text, "reference": reference} for text, reference in zip(said, true, strict=True)]


@pytest.mark.parametrize("stemmer", [False, True])
def test_as_rouge_score(stemmer):
    scorer = RougeScorer(list(OURS.values()), use_stemmer=stemmer)
    scores = [scorer.score(true, said) for true, said in zip(TRUE, SAID, strict=True)]
    expected = {name: fmean(score[kind].fmeasure for score in scores) for name, kind in OURS.items()}
    assert Rouge(stemmer=stemmer).compute(written(SAID, TRUE)) == pytest.approx(expected)


def test_the_nearest_of_several_references_counts():
    numbers = Rouge().compute([{"generated": "a b c", "reference": ["x", "a b c"]}])
    assert numbers == dict.fromkeys(OURS, 1)


def test_words_of_other_scripts_count_where_asked():
    rows = written(["кошка сидит", "猫座"], ["кошка спит", "猫立"])
    assert Rouge().compute(rows)["rouge/1"] == 0
    assert Rouge(tokenize="words").compute(rows)["rouge/1"] == 0.25
    assert Rouge(tokenize="letters").compute(rows[1:])["rouge/1"] == 0.5


def test_empty_texts_and_unknown_references():
    assert Rouge().compute(written([""], [""]))["rouge"] == 0
    assert all(math.isnan(value) for value in Rouge().compute(written(["a"], [None])).values())
