"""What is told of two models, before it is shown."""

from __future__ import annotations

import json

from peftkit.evaluation.changes import Change
from peftkit.report.comparison import Side, unread_lines
from tests.report.made import made


def test_the_gravest_changes_come_first() -> None:
    assert [change.row for change in made().changed] == [1, 0, 3, 2]
    assert list(made().counts.items()) == [("fixed", 1), ("broken", 1), ("otherwise wrong", 2), ("same", 1)]


def test_a_row_that_is_right_in_other_words_has_changed() -> None:
    said = Change(0, "", "same", "", "A river.", "a river", "A river.")
    assert made(changes=(said,)).changed == [said]


def test_as_json_it_has_only_what_json_knows() -> None:
    plain = json.loads(json.dumps(made().plain(), allow_nan=False))
    first, second = plain["differences"]
    assert (first["difference"], first["verdict"]) == (0.25, "better")
    assert (second["after"], second["difference"], second["p"], second["verdict"]) == (None, None, None, "unknown")
    assert len(plain["changes"]) == 5 and plain["counts"]["fixed"] == 1


def test_rows_that_were_not_read_are_told() -> None:
    rows = tuple((f"line {n}", "empty") for n in range(5))
    told = "5 rows could not be read for A: line 0 (empty); line 1 (empty); line 2 (empty); and 2 more"
    assert unread_lines((Side("A", "a", rows), Side("B", "b"))) == [told]
    assert unread_lines((Side("A", "a", rows[:1]), Side("B", "b", rows[:1]))) == [
        "1 row could not be read for both: line 0 (empty)"
    ]
    assert unread_lines((Side("A", "a"), Side("B", "b"))) == []
