"""BLEU and chrF of a split are sacrebleu's of the whole corpus."""

from __future__ import annotations

import math

import pytest
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from peftkit.metrics import Bleu, ChrF

SAID = ["The cat sat on the mat.", "A dog, he barked!", "", "Il fait beau aujourd'hui", "猫が座った"]
TRUE = ["The cat is sitting on the mat.", "The dog barked.", "Nobody came.", "Il fait beau ce matin", "猫が座っている"]
OTHER = ["A cat sat on the mat.", "He barked, the dog!", "No one.", "Il fait beau aujourd'hui", "猫は座った"]


def written(said, true):
    return [{"generated": text, "reference": reference} for text, reference in zip(said, true, strict=True)]


SETTINGS = [
    *((Bleu, BLEU, {"tokenize": tokenize}) for tokenize in ("13a", "intl", "char", "zh", "none")),
    (Bleu, BLEU, {"lowercase": True}),
    *((ChrF, CHRF, {"word_order": order}) for order in (0, 2)),
    (ChrF, CHRF, {"lowercase": True}),
]


@pytest.mark.parametrize(("metric", "oracle", "how"), SETTINGS)
def test_of_one_and_of_several_references(metric, oracle, how):
    one = oracle(**how).corpus_score(SAID, [TRUE]).score
    assert metric(**how).compute(written(SAID, TRUE)) == pytest.approx({metric.name: one})
    two = oracle(**how).corpus_score(SAID, [TRUE, OTHER]).score
    several = written(SAID, [list(pair) for pair in zip(TRUE, OTHER, strict=True)])
    assert metric(**how).compute(several) == pytest.approx({metric.name: two})
    assert 0 < one < two < 100


@pytest.mark.parametrize("metric", [Bleu(), ChrF()])
def test_empty_texts_and_unknown_references(metric):
    assert metric.compute(written(["", ""], ["a b", "c"])) == {metric.name: 0}
    assert metric.compute(written([""], [""])) == {metric.name: 0}  # as sacrebleu: nothing is shared
    assert math.isnan(metric.compute(written(["a"], [None]))[metric.name])
    assert metric.compute(written([*SAID, "a"], [*TRUE, None])) == metric.compute(written(SAID, TRUE))
    assert metric.compute(written(["one two three four five"], ["one two three four five"]))[
        metric.name
    ] == pytest.approx(100)
