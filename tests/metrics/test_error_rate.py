"""Word and character error rates of a split are jiwer's of the whole."""

from __future__ import annotations

import math

import jiwer
import pytest

from peftkit.metrics import CharacterErrorRate, WordErrorRate

TRUE = ["the cat sat", "hello there big world", "", "Nobody, came.", "ein Satz"]
SAID = ["the cat sat down", "hello their world", "uh", "", "Ein satz"]


def heard(true, said):
    return [{"reference": a, "generated": b} for a, b in zip(true, said, strict=True)]


@pytest.mark.parametrize(("metric", "oracle"), [(WordErrorRate(), jiwer.wer), (CharacterErrorRate(), jiwer.cer)])
def test_as_jiwer(metric, oracle):
    assert metric.compute(heard(TRUE, SAID)) == pytest.approx({metric.name: oracle(TRUE, SAID)})


@pytest.mark.parametrize("metric", [WordErrorRate(), CharacterErrorRate()])
def test_silence(metric):
    assert math.isnan(metric.compute(heard([""], ["uh"]))[metric.name])
    assert math.isnan(metric.compute(heard([None], ["uh"]))[metric.name])
    assert metric.compute(heard(["a"], [""])) == {metric.name: 1}


def test_case_and_punctuation_do_not_count_where_asked():
    rows = heard(["Nobody, came. Don't!"], ["nobody came don't"])
    assert WordErrorRate().compute(rows) == {"wer": 1}
    assert WordErrorRate(normalize=True).compute(rows) == {"wer": 0}
    assert CharacterErrorRate(normalize=True).compute(rows) == {"cer": 0}


def test_the_nearest_of_several_references_counts():
    assert WordErrorRate().compute(heard([["one two", "one three four"]], ["one three"])) == {"wer": 1 / 3}
