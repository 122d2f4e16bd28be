"""What a user reads of a run."""

from __future__ import annotations

import re

import pytest

from peftkit.tracking.console import Console, Pace, clock, short


def row(step: int, **more: float) -> dict[str, float]:
    return {"step": step, "loss": 3 / step, "lr": 2e-4, "grad_norm": 0.5, "targets": 500, "seconds": 0.5, **more}


def test_no_terminal_means_plain(capsys):
    console = Console()
    assert console.plain
    console.header("peftkit", [("strategy", "lora [16]"), ("out", "x" * 200)])
    assert capsys.readouterr().out == f"peftkit\n  strategy  lora [16]\n  out       {'x' * 200}\n"


def test_a_plain_step_is_a_line(capsys):
    console = Console(plain=True)
    console.start(100)
    console.step(row(1, memory=3 * 2**30))
    assert (
        capsys.readouterr().out
        == "step   1/100  loss 3.000  lr 2.0e-04  norm 0.5000  1,000 targets/s  3.0 GiB  0:50 left\n"
    )


@pytest.mark.parametrize(
    ("total", "done", "lines"), [(1, 0, 1), (10, 0, 10), (100, 0, 22), (1000, 0, 23), (12345, 0, 23), (1000, 490, 14)]
)
def test_a_plain_log_stays_short(capsys, total, done, lines):
    console = Console(plain=True)
    console.start(total, done)
    for step in range(done + 1, total + 1):
        console.step(row(step))
    shown = [int(number) for number in re.findall(r"^step +(\d+)/", capsys.readouterr().out, flags=re.MULTILINE)]
    assert len(shown) == lines
    assert (shown[0], shown[-1]) == (done + 1, total)


def test_a_plain_evaluation_is_a_line_with_the_difference(capsys):
    console = Console(plain=True)
    console.evaluation("validation", 0, {"loss": 2.0})
    console.evaluation("validation", 10, {"loss": 1.5, "accuracy": 0.75}, {"loss": 2.0})
    assert capsys.readouterr().out.splitlines() == [
        "validation at step 0:  loss 2.000",
        "validation at step 10:  loss 1.500 (before 2.000, -0.5)  accuracy 0.7500",
    ]


def test_an_evaluation_is_a_table_on_a_terminal(capsys):
    Console(plain=False).evaluation("validation", 10, {"loss": 1.5, "accuracy": 0.75}, {"loss": 2.0, "accuracy": 0.5})
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[1:] == [
        ["before", "after", "difference"],
        ["loss", "2.000", "1.500", "-0.5"],
        ["accuracy", "0.5000", "0.7500", "+0.25"],
    ]


def test_the_bar_shows_the_last_step(capsys):
    console = Console(plain=False)
    console.start(10)
    for step in range(1, 6):
        console.step(row(step))
    console.close()
    assert "step 5/10" in capsys.readouterr().out


def test_the_summary_ends_with_what_to_type_next_in_one_piece(capsys):
    console = Console(plain=True)
    command = f"peftkit export {'long/' * 40} --to merged"
    console.summary([("adapter", "runs/x/export/adapter")], [command])
    assert capsys.readouterr().out.splitlines() == ["done", "  adapter  runs/x/export/adapter", "next:", f"  {command}"]


def test_notes_and_warnings_are_not_markup(capsys):
    console = Console(plain=True)
    console.note("a [b] c")
    console.warn("a [/b] c")
    assert capsys.readouterr().out == "a [b] c\nwarning: a [/b] c\n"


def test_speed_and_time_left_are_those_of_the_last_steps():
    pace = Pace(total=100)
    assert (pace.speed, pace.left) == (0, 0)
    for step in range(1, 51):
        pace.add(row(step, seconds=100 if step <= 30 else 2))
    assert (pace.speed, pace.left) == (250, 100)


@pytest.mark.parametrize(
    ("value", "text"), [(3, "3.000"), (1e-8, "1.000e-08"), (12345.6, "12346"), (float("nan"), "nan"), (None, "-")]
)
def test_short(value, text):
    assert short(value) == text


def test_clock():
    assert [clock(seconds) for seconds in (0, 59.6, 75, 3700)] == ["0:00", "1:00", "1:15", "1:01:40"]


def test_scores_are_a_line_a_metric_with_groups_and_intervals(capsys):
    numbers = {
        "f1": 0.5,
        "f1/macro": 0.25,
        "by=a/b/f1": 0.125,
        "by=a/b/f1/macro": 1.0,
        "f1/low": 0.375,
        "f1/high": 0.75,
    }
    Console(plain=True).scores(numbers, "by")
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["all", "by=a/b"],
        ["f1", "0.5000", "(0.3750", "to", "0.7500)", "0.1250"],
        ["f1/macro", "0.2500", "1.000"],
    ]
