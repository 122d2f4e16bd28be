"""Entity F1 is seqeval's, lenient and strict, in every scheme, also of sequences that no scheme allows."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval import metrics as seqeval
from seqeval import scheme as schemes

from peftkit.errors import ConfigError
from peftkit.metrics import EntityF1

AVERAGES = ("micro", "macro", "weighted")
PREFIXES = {"IOB1": "BI", "IOB2": "BI", "IOBES": "BIES"}


def tagged(true, said):
    return [{"tags": a, "predicted_tags": b} for a, b in zip(true, said, strict=True)]


def sentences(scheme):
    tag = st.sampled_from(["O", *(f"{prefix}-{kind}" for prefix in PREFIXES[scheme] for kind in ("PER", "LOC"))])
    words = st.integers(1, 8).flatmap(lambda n: st.tuples(*[st.lists(tag, min_size=n, max_size=n)] * 2))
    return st.lists(words, min_size=1, max_size=6)


def expected(true, said, **how):
    """seqeval's numbers under our names."""
    of = {average: seqeval.f1_score(true, said, average=average, zero_division=0, **how) for average in AVERAGES}
    numbers = {"entity_f1": of["micro"], "entity_f1/macro": of["macro"], "entity_f1/weighted": of["weighted"]}
    numbers["entity_f1/precision"] = seqeval.precision_score(true, said, zero_division=0, **how)
    numbers["entity_f1/recall"] = seqeval.recall_score(true, said, zero_division=0, **how)
    report = seqeval.classification_report(true, said, output_dict=True, zero_division=0, **how)
    return numbers | {f"entity_f1/{kind}": report[kind]["f1-score"] for kind in ("PER", "LOC") if kind in report}


@pytest.mark.parametrize("scheme", PREFIXES)
@pytest.mark.parametrize("strict", [False, True])
@settings(max_examples=40)
@given(data=st.data())
def test_as_seqeval(scheme, strict, data):
    true, said = zip(*data.draw(sentences(scheme)), strict=True)
    how = {"mode": "strict", "scheme": getattr(schemes, scheme)} if strict else {}
    numbers = EntityF1(strict=strict, scheme=scheme, detail=True).compute(tagged(true, said))
    if math.isnan(numbers["entity_f1"]):
        # Nothing to find and nothing found: seqeval says 0.
        assert {tag for tags in (*true, *said) for tag in tags} == {"O"} or strict
        assert seqeval.f1_score(true, said, zero_division=0, **how) == 0
    else:
        assert numbers == pytest.approx(expected(true, said, **how))


def test_without_detail_there_are_three_numbers():
    rows = tagged([["B-PER", "I-PER", "O"]], [["B-PER", "I-PER", "B-LOC"]])
    assert EntityF1().compute(rows) == {"entity_f1": 2 / 3, "entity_f1/precision": 0.5, "entity_f1/recall": 1}


def test_strict_takes_the_task_s_scheme_unless_it_has_its_own():
    task = SimpleNamespace(scheme="IOBES")
    assert EntityF1().fit(task).scheme == "IOBES"
    assert EntityF1(scheme="IOB1").fit(task).scheme == "IOB1"
    assert EntityF1().fit(SimpleNamespace()).scheme is None


def test_tags_of_another_scheme_are_refused_when_strict():
    with pytest.raises(ConfigError, match="entity_f1: the tags are not written in IOB2"):
        EntityF1(strict=True).compute(tagged([["S-PER"]], [["O"]]))


def test_no_entity_at_all_or_no_gold_tags_is_no_number():
    for rows in (tagged([["O"]], [["O"]]), tagged([None], [["B-PER"]]), tagged([[]], [[]])):
        assert all(math.isnan(value) for value in EntityF1().compute(rows).values())


def test_nothing_predicted_is_0():
    assert set(EntityF1().compute(tagged([["B-PER"]], [["O"]])).values()) == {0}
