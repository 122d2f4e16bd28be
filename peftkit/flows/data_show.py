"""Rows as the model sees them, what is learnt of them in colour: `peftkit data show --data.train chats.jsonl`."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.rule import Rule
from rich.text import Text

from peftkit.config.run import Run
from peftkit.data.encode import count_targets, length
from peftkit.data.prepare import Prepared
from peftkit.flows.job import prepare_data
from peftkit.models.processor import load_processor
from peftkit.tasks.base import Features

OPEN, CLOSE = "«", "»"


def show(run: Run, rows: int, console: Console | None = None) -> None:
    """Print the first `rows` training rows, exactly as training will see them (and from the same cache)."""
    source, prepared = prepare_data(run)
    processor = load_processor(run.model, source, run.task.reads)
    console = console or Console(highlight=False)
    console.print(legend(console.is_terminal))
    for number in range(min(rows, len(prepared.train))):
        features = prepared.train[number]
        console.print(Rule(heading(number, features, prepared.task.reads == "text"), align="left", characters="-"))
        console.print(marked(prepared.task.pieces(features, processor), console.is_terminal), soft_wrap=True)
    console.print(Rule(characters="-"))
    console.print(Text("\n".join(summary(prepared))), soft_wrap=True)


def legend(colour: bool) -> Text:
    """What the marks mean."""
    return Text("learnt: ").append_text(marked([("targets", True)], colour)).append("; the rest is only read")


def marked(pieces: Sequence[tuple[str, bool]], colour: bool) -> Text:
    """A row's text: targets green and bold, the rest dim; without colour targets stand between « and »."""
    text = Text()
    for piece, target in pieces:
        if colour:
            text.append(piece, style="bold green" if target else "dim")
        else:
            text.append(OPEN + piece + CLOSE if target else piece)
    return text


def heading(number: int, features: Features, is_text: bool) -> str:
    """`row 1: 212 tokens, 31 targets`; images and sounds have no tokens."""
    tokens = f"{length(features)} tokens, " if is_text else ""
    return f"row {number + 1}: {tokens}{count_targets(features)} targets"


def summary(prepared: Prepared) -> list[str]:
    """The count of every split."""
    return prepared.report.lines()
