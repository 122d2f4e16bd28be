"""On the terminal: numbers, tests, rows; and nothing that steers it."""

from __future__ import annotations

from io import StringIO

from rich.console import Console

from peftkit.report.terminal import odds, shown
from tests.report.made import made


def text_of(rows: int = 9, width: int = 200) -> str:
    out = StringIO()
    Console(file=out, width=width).print(*shown(made(), rows), sep="\n")
    return out.getvalue()


def test_it_tells_numbers_tests_groups_and_rows() -> None:
    text = text_of()
    for words in (
        "0.5000", "0.7 to 0.8", "+0.2500", "0.010", "0.020", "B is better", "not tested",
        "McNemar's exact test", "2,000 exchanges", "1 fixed, 1 broken, 2 otherwise wrong, 1 same",
        "right before, wrong now", "loss 5.000 -> 1.000", "could not be read for A", "a note",
    ):  # fmt: skip
        assert words in text, words
    assert "\x1b" not in text and "\u202e" not in text


def test_narrow_terminals_cut_no_number() -> None:
    text = text_of(width=80)
    assert "…" not in text.split("McNemar")[0]
    for words in ("0.010", "0.020", "B is better", "accuracy"):
        assert words in text


def test_so_many_rows_as_are_asked_for() -> None:
    assert text_of(rows=1).count("expected") == 1
    assert text_of(rows=9).count("expected") == 4


def test_p_values() -> None:
    assert [odds(p) for p in (0.0004, 0.0123, 1.0, float("nan"))] == ["<0.001", "0.012", "1.000", ""]
