"""Help, written from the settings' own docstrings."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from peftkit.cli.screen import stdout

if TYPE_CHECKING:
    from rich.console import Console

    from peftkit.config.flags import Flag
    from peftkit.config.settle import Settled

USAGE = """\
peftkit train --strategy lora                 train on the built-in example
peftkit train --model ORG/NAME --data F.jsonl --strategy qlora
peftkit train --config run.yaml --optim.lr 1e-4
peftkit export runs/NAME --to merged          a model that can be deployed
deepspeed launch/train.py --strategy lora     the same on several processes"""
LAYERS = """\
Settings are read from defaults, then --config FILE.yaml (several: later ones win), then flags.
--a.b VALUE and --a.b=VALUE are the same; a list is `--x a b c`, `a,b,c` or `[a, b, c]`; a mapping
is `--x '{a: b}'` or `--x.a b`; a switch is `--x` or `--no-x`; `null` leaves a setting open.
--dry-run shows the resolved run and trains nothing."""


def show_commands(commands: Mapping[str, str]) -> None:
    """`peftkit --help`."""
    console = stdout()
    console.print(
        "[bold]peftkit[/] fine-tunes a transformers model on DeepSpeed and hands back one that can be deployed.\n"
    )
    two_columns(console, "Commands", "", list(commands.items()))
    console.print("[bold]Examples[/]")
    console.print(USAGE, style="cyan", soft_wrap=True)


def show_settings(settled: Settled, only: Collection[str] = (), command: str = "train") -> None:
    """Every setting of the run; the sections of what `settled` chose in full."""
    console = stdout()
    console.print(f"[bold]Usage:[/] peftkit {command} [--config FILE.yaml] [--SETTING VALUE ...]\n", markup=True)
    console.print(" ".join(LAYERS.split()) + "\n", markup=False)
    for title, intro, rows in sections(settled):
        if not only or title.partition(" ")[0] in only:
            two_columns(console, title, intro, rows)
    if settled.problems:
        console.print("\n".join(settled.problems), style="red", soft_wrap=True)


def sections(settled: Settled) -> list[tuple[str, str, list[tuple[str, Any]]]]:
    """Title, introduction and rows (flag, what it is) of each section."""
    from peftkit.config.flags import flags
    from peftkit.config.run import Run

    groups: dict[str, list[Flag]] = {}
    for flag in flags(Run, settled.chosen):
        alone = len(flag.path) == 1 and flag.owner is Run and flag.path not in settled.chosen
        groups.setdefault("run" if alone else flag.path[0], []).append(flag)
    made = []
    for name, members in groups.items():
        choice = settled.chosen.get((name,))
        title, intro = _title(name, choice)
        # The long form of a short flag (--model.path) is accepted; once is enough to read.
        made.append((title, intro, [(flag.word, _row(flag)) for flag in members if not flag.short]))
    return made


def _title(name: str, choice: Any) -> tuple[str, str]:
    if choice is None:
        return name, ""
    others = [other for other in choice.registry if other != choice.name]
    intro = first_sentence(choice.__doc__)
    return f"{name} {choice.name}", intro + (f" Others: {', '.join(others)}." if others else "")


def _row(flag: Flag) -> Any:
    from rich.text import Text

    from peftkit.config.kinds import describe

    default = "" if flag.default is None else f"; default {_show(flag.default)}"
    return Text(" ".join(flag.help.split())).append(f"\n{describe(flag.kind)}{default}", style="dim")


def _show(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return ", ".join(str(item) for item in value) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value) if value != {} else "none"


def first_sentence(text: str | None) -> str:
    """The first sentence of a docstring, without the reference in brackets that may end it."""
    paragraph = " ".join((text or "").strip().split("\n\n")[0].split())
    sentence = paragraph.split(". ")[0].rstrip(".")
    before, bracket, reference = sentence.partition(" (")
    return (before if bracket and "http" in reference else sentence) + "." if sentence else ""


def two_columns(console: Console, title: str, intro: str, rows: Sequence[tuple[str, Any]]) -> None:
    """A titled table of names and what they are."""
    from rich.table import Table
    from rich.text import Text

    console.print(Text(title, style="bold").append(f"  {intro}" if intro else "", style="not bold italic"))
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 2))
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in rows:
        table.add_row(name, text)
    console.print(table)
    console.print()
