"""What is held out: label shares, whole groups, the latest rows, folds that cover everything once."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest
from sklearn.model_selection import StratifiedShuffleSplit

from peftkit.config.sections import Data
from peftkit.data.sources import Table
from peftkit.data.split import hold_out, stratify
from peftkit.errors import DataError


def table(values, column="label") -> Table:
    return Table("a.csv", [{column: value} for value in values], range(2, len(values) + 2), "line")


def held(values, share=0.2, column="label", seed=1, wanted=("validation",), **settings):
    data = Data(train="a.csv", **settings)
    return hold_out(table(values, column), dict.fromkeys(wanted, share), data, "label", seed)


LABELS = ["a"] * 70 + ["b"] * 20 + ["c"] * 10


def test_label_shares_are_those_of_scikit_learn():
    found = held(LABELS, split="stratified")
    _, test = next(StratifiedShuffleSplit(1, test_size=20, random_state=0).split(LABELS, LABELS))
    assert Counter(LABELS[row] for row in found["validation"]) == Counter(LABELS[row] for row in test)


def test_rare_labels_do_not_all_go_to_the_larger_part():
    labels = [f"L{row // 5}" for row in range(500)]
    found = held(labels, 0.1, split="stratified")["validation"]
    assert 45 <= len(found) <= 55
    assert max(Counter(labels[row] for row in found).values()) == 1


def several() -> list[list[str]]:
    draw = random.Random(0)
    chances = {"a": 0.5, "b": 0.2, "c": 0.05, "d": 0.02}
    return [[name for name, chance in chances.items() if draw.random() < chance] for _ in range(1000)]


def test_shares_of_several_labels_are_kept_too():
    """The oracle: each label's rows held out, within one of its share."""
    labels = several()
    found = held(labels, 0.2, split="stratified")["validation"]
    whole, part = (Counter(name for row in rows for name in labels[row]) for rows in (range(1000), found))
    assert abs(len(found) - 200) <= 4
    assert all(abs(part[name] - 0.2 * whole[name]) <= 1.5 for name in whole)


def test_multi_hot_lists_and_texts_are_labels():
    texts = ["|".join(names) for names in several()]
    hot = [[int(name in names) for name in "abcd"] for names in several()]
    assert held(texts, split="stratified") == held(several(), split="stratified")
    part = np.array(hot)[held(hot, split="stratified")["validation"]].sum(axis=0)
    assert np.abs(part - 0.2 * np.array(hot).sum(axis=0)).max() <= 1.5


def test_every_part_gets_a_row():
    assert sorted(set(stratify([frozenset("a")] * 3, [0.9, 0.05, 0.05], "s"))) == [0, 1, 2]


@pytest.mark.parametrize("split", ["random", "stratified", "group"])
def test_folds_cover_every_row_once(split):
    by = {} if split == "random" else {"split_by": "label"}
    names = [f"g{row // 6}" for row in range(60)] if split == "group" else LABELS
    parts = [held(names, split=split, folds=5, fold=fold, **by)["validation"] for fold in range(5)]
    assert sorted(row for part in parts for row in part) == list(range(len(names)))
    assert {len(part) for part in parts} == {len(names) // 5}
    if split == "stratified":
        assert [Counter(names[row] for row in part) for part in parts] == [{"a": 14, "b": 4, "c": 2}] * 5
    if split == "group":
        assert len({(names[row], number) for number, part in enumerate(parts) for row in part}) == 10


def test_groups_stay_whole():
    names = [f"g{row * row % 23}" for row in range(200)]
    found = held(names, 0.25, column="user", split="group", split_by="user", wanted=("validation", "test"))
    parts = [{names[row] for row in found[split]} for split in ("train", "validation", "test")]
    assert not (parts[0] & parts[1] or parts[0] & parts[2] or parts[1] & parts[2])
    assert all(30 <= len(found[split]) <= 70 for split in ("validation", "test"))


def test_the_latest_rows_are_held_out_the_test_last_of_all():
    days = [f"2024-01-{day:02}" for day in (5, 1, 9, 3, 7, 2, 8, 4, 10, 6)]
    found = held(days, 0.2, column="day", split="time", split_by="day", wanted=("validation", "test"))
    assert {split: sorted(days[row][-2:] for row in rows) for split, rows in found.items()} == {
        "train": ["01", "02", "03", "04", "05", "06"],
        "validation": ["07", "08"],
        "test": ["09", "10"],
    }


def test_zones_are_heeded():
    times = ["2024-01-01T12:00:00+02:00", "2024-01-01T11:00:00Z", "2024-01-01T10:30:00"]
    assert held(times, column="at", split="time", split_by="at")["validation"] == [1]


@pytest.mark.parametrize("split", ["random", "stratified"])
def test_the_seed_decides_and_the_same_one_decides_the_same(split):
    assert held(LABELS, split=split, seed=3) == held(LABELS, split=split, seed=3) != held(LABELS, split=split, seed=4)


@pytest.mark.parametrize(
    ("values", "settings", "message"),
    [
        (["x", "y", None], {"split": "group", "split_by": "label"}, r"a\.csv line 4: .* the row has none"),
        (
            ["2024-01-01", "soon"],
            {"split": "time", "split_by": "label"},
            r"a\.csv line 3: .*no date, time or number as in 2024",
        ),
        ([0.25, 1.5], {"split": "stratified"}, r"a\.csv line 2: .*--data\.split_by"),
        (["x"] * 9, {"split": "group", "split_by": "label"}, "has 1 group"),
        (["x"] * 3, {"folds": 5}, "has 3 rows, too few for --data.folds 5"),
        (["x"], {}, r"has one row.*--data\.validation, or --data\.holdout 0"),
    ],
)
def test_rows_that_cannot_be_split_so_are_named(values, settings, message):
    with pytest.raises(DataError, match=message):
        held(values, **settings)
