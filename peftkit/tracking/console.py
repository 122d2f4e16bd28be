"""What the user sees of a run: header, progress, evaluations, summary; plain lines where the output is no terminal."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Iterable, Sequence
from typing import IO, Any, cast

from rich.console import Console as RichConsole
from rich.console import RenderableType
from rich.panel import Panel
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Column, Table
from rich.text import Text

from peftkit.tracking.quiet import is_active, terminal

FIRST_LINES = (1, 2, 5)
"""Plain output shows these steps, and then LINES more, evenly."""
LINES = 20
ENDS = ("low", "high")
"""What the ends of a metric's interval are called behind its name."""
WINDOW = 20
"""Speed and time left are those of so many last steps."""

Pairs = Iterable[tuple[str, Any]]


class Console:
    """The terminal's view of a run. `plain` turns bars and colours off; left out, they are on where there is a terminal."""

    def __init__(self, plain: bool | None = None) -> None:
        self._rich = RichConsole(
            file=cast(IO[str], _Terminal()), highlight=False, width=_width(), no_color=plain or None
        )
        self.plain = not self._rich.is_terminal if plain is None else plain
        self._progress: Progress | None = None
        self._task = TaskID(0)
        self._pace = Pace()

    def header(self, title: str, pairs: Pairs) -> None:
        """What will be done, before it is done."""
        self._show_pairs(title, pairs)

    def start(self, total_steps: int, done: int = 0) -> None:
        """The first step is about to run; `done` were run before (a resumed run)."""
        self._pace = Pace(total_steps, done)
        if self.plain:
            return
        self._progress = Progress(
            TextColumn("[bold]step {task.completed}/{task.total}", table_column=Column(no_wrap=True)),
            BarColumn(bar_width=None, table_column=Column(ratio=1, min_width=4)),
            TextColumn("{task.fields[numbers]}", table_column=Column(no_wrap=True)),
            console=self._rich,
            expand=True,
            redirect_stdout=not is_active(),
            redirect_stderr=not is_active(),
        )
        self._task = self._progress.add_task("", total=total_steps, completed=done, numbers="")
        self._progress.start()

    def step(self, row: dict[str, Any]) -> None:
        """One step's row: `step`, `loss`, `lr`, `targets`, `seconds`, and if it has them `grad_norm` and `memory` (bytes)."""
        self._pace.add(row)
        if self._progress:
            self._progress.update(self._task, completed=row["step"], numbers="  ".join(self._numbers(row)))
        elif self._pace.is_shown(row["step"]):
            of_total = f"{row['step']:>{len(str(self._pace.total))}}/{self._pace.total}"
            self._print("  ".join([f"step {of_total}", *self._numbers(row)]))

    def evaluation(
        self, split: str, step: int, numbers: dict[str, float], before: dict[str, float] | None = None
    ) -> None:
        """A split's numbers, beside those of the base model if they are given."""
        before = before or {}
        if self.plain:
            told = [f"{name} {short(value)}{_change(value, before.get(name))}" for name, value in numbers.items()]
            self._print(f"{split} at step {step}:  {'  '.join(told)}")
            return
        table = Table(title=f"{split} at step {step}", title_justify="left", box=None, padding=(0, 2))
        for name in ("", "before", "after", "difference") if before else ("", "value"):
            table.add_column(name, justify="right" if name else "left", style="bold" if name == "after" else "")
        for name, value in numbers.items():
            table.add_row(name, *(_compared(before.get(name), value) if before else [short(value)]))
        self._print(table)

    def scores(self, numbers: dict[str, float], by: str | None = None) -> None:
        """A line a metric, with its interval; beside the whole each value of the column `by`."""
        groups = grouped(numbers, by)
        table = Table(box=None, padding=(0, 2), show_header=by is not None)
        for name in ("", *groups) if by else ("", ""):
            table.add_column(Text(name), justify="right" if name or not by else "left")
        table.columns[0].justify = "left"
        metrics = dict.fromkeys(metric for own in groups.values() for metric in own)
        for metric in metrics:
            if metric.rpartition("/")[0] not in metrics or metric.rpartition("/")[2] not in ENDS:
                table.add_row(Text(metric), *(_with_interval(own, metric) for own in groups.values()))
        self._print(table)

    def note(self, text: str) -> None:
        """Something worth knowing."""
        self._print(text)

    def warn(self, text: str) -> None:
        """Something that is probably not meant so."""
        self._print(Text("warning: ", style="yellow").append(text, style="default"))

    def show(self, *what: RenderableType) -> None:
        """Anything that rich can print."""
        for one in what:
            self._print(one)

    def summary(self, pairs: Pairs, next_commands: Sequence[str] = ()) -> None:
        """What came of it, where it lies, and what to type next."""
        self._stop()
        self._show_pairs("done", pairs)
        if next_commands:
            self._print(Text("next:", style="bold"))
        for command in next_commands:
            self._print(Text(f"  {command}", style="" if self.plain else "cyan"))

    def close(self) -> None:
        """Give the terminal back."""
        self._stop()

    def _stop(self) -> None:
        if self._progress:
            self._progress.stop()
            self._progress = None

    def _print(self, what: RenderableType) -> None:
        # Sentences and commands are not wrapped by us: what is cut in two can be neither searched nor copied.
        self._rich.print(what, soft_wrap=isinstance(what, (str, Text)), markup=False)

    def _show_pairs(self, title: str, pairs: Pairs) -> None:
        told = [(name, str(value)) for name, value in pairs]
        if not self.plain:
            self._print(Panel(_grid(told), title=Text(title, style="bold"), title_align="left", expand=False))
            return
        self._print(title)
        width = max((len(name) for name, _ in told), default=0)
        for name, value in told:
            self._print(f"  {name:{width}}  {value}")

    def _numbers(self, row: dict[str, Any]) -> list[str]:
        told = [f"loss {short(row['loss'])}", f"lr {row['lr']:.1e}"]
        if self.plain and row.get("grad_norm") is not None:
            told.append(f"norm {short(row['grad_norm'])}")
        told.append(f"{self._pace.speed:,.0f} targets/s")
        if row.get("memory"):
            told.append(f"{row['memory'] / 2**30:.1f} GiB")
        return [*told, f"{clock(self._pace.left)} left"]


class Pace:
    """How fast the last steps were, how long the rest takes, and which of them get a line of plain output."""

    def __init__(self, total: int = 0, done: int = 0) -> None:
        self.total, self.done = total, done
        self._first = done
        self._last: deque[tuple[int, float]] = deque(maxlen=WINDOW)

    def add(self, row: dict[str, Any]) -> None:
        self.done = row["step"]
        self._last.append((row["targets"], row["seconds"]))

    @property
    def speed(self) -> float:
        """Targets in a second."""
        seconds = sum(seconds for _, seconds in self._last)
        return sum(targets for targets, _ in self._last) / seconds if seconds else 0.0

    @property
    def left(self) -> float:
        """Seconds."""
        if not self._last:
            return 0.0
        return (self.total - self.done) * sum(seconds for _, seconds in self._last) / len(self._last)

    def is_shown(self, step: int) -> bool:
        """The first steps, the last, and about twenty in between."""
        every = max(1, math.ceil(self.total / LINES))
        return step - self._first in FIRST_LINES or step % every == 0 or step == self.total


class _Terminal:
    """A file that is the user's terminal at the moment of writing, inside and outside `chatter_to`."""

    def write(self, text: str) -> int:
        return terminal().write(text)

    def flush(self) -> None:
        terminal().flush()

    def isatty(self) -> bool:
        return terminal().isatty()

    def fileno(self) -> int:
        return terminal().fileno()

    @property
    def encoding(self) -> str:
        return getattr(terminal(), "encoding", None) or "utf-8"


def _width() -> int | None:
    return None if terminal().isatty() or "COLUMNS" in os.environ else 100


def _grid(pairs: Iterable[tuple[str, str]]) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold")
    grid.add_column(overflow="fold")
    for name, value in pairs:
        grid.add_row(Text(name), Text(value))
    return grid


def grouped(numbers: dict[str, float], by: str | None) -> dict[str, dict[str, float]]:
    """`all` and each value of the column `by` -> its numbers.

    >>> grouped({"f1": 0.5, "language=de/f1": 0.4}, "language")
    {'all': {'f1': 0.5}, 'language=de': {'f1': 0.4}}
    """
    whole = {name: value for name, value in numbers.items() if by is None or not name.startswith(f"{by}=")}
    groups = {"all": whole}
    for name in numbers.keys() - whole.keys():
        known = [metric for metric in whole if name.endswith(f"/{metric}")]
        metric = max(known, key=len) if known else name.partition("/")[2]
        groups.setdefault(name.removesuffix(f"/{metric}"), {})[metric] = numbers[name]
    return dict(sorted(groups.items(), key=lambda pair: (pair[0] != "all", pair[0])))


def _with_interval(numbers: dict[str, float], metric: str) -> str:
    ends = [numbers.get(f"{metric}/{end}") for end in ENDS]
    told = short(numbers.get(metric))
    return told if None in ends else f"{told} ({' to '.join(map(short, ends))})"


def _compared(before: float | None, after: float) -> list[str]:
    if before is None:
        return ["", short(after), ""]
    return [short(before), short(after), f"{after - before:+.4g}"]


def _change(after: float, before: float | None) -> str:
    return "" if before is None else f" (before {short(before)}, {after - before:+.4g})"


def short(value: float | None) -> str:
    """A number as one reads it: four digits that count.

    >>> short(0.69314718), short(12345.6), short(None)
    ('0.6931', '12346', '-')
    """
    if value is None:
        return "-"
    return f"{value:.0f}" if math.isfinite(value) and abs(value) >= 1000 else f"{value:#.4g}"


def clock(seconds: float) -> str:
    """
    >>> clock(75), clock(3700)
    ('1:15', '1:01:40')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
