"""`peftkit data show`: rows as the model will see them. `peftkit data check`: what is wrong with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from peftkit.config.read import chosen, read
from peftkit.errors import ConfigError

SECTIONS = ("task", "data", "model")
CHECK_USAGE = "data check [--fix OUT_DIR] [--json FILE] [--only CHECK,..] [--skip CHECK,..]"
WANTED = {"--only": "CHECK", "--skip": "CHECK", "--measure": "STEPS"}
CHECK_HELP = (
    "Exit code: 0 if no finding is an error, 1 if one is, 2 for wrong settings or a source that is not there."
    " Nothing is overwritten: --fix writes the rows with the remedies applied, and fixes.json, into a new folder."
    " A remedy marked (--only CHECK) is applied only if --only names its check."
)


def show(words: list[str]) -> int:
    """Take the same settings as `peftkit train`, and `--rows N`."""
    if {"--help", "-h"} & set(words):
        from peftkit.cli.help import show_settings

        show_settings(chosen([]), only=SECTIONS, command="data show [--rows 3]")
        return 0
    rows, rest = _take_rows(words)
    settings = read(rest)
    from peftkit.flows.data_show import show as show_rows

    show_rows(settings, rows)
    return 0


def check(words: list[str]) -> int:
    """Take the same settings as `peftkit train`, and what `CHECK_USAGE` says; 1 if there is an error among the findings."""
    if {"--help", "-h"} & set(words):
        _show_check_help()
        return 0
    own, rest = take(words, ("fix", "json", "only", "skip"))
    settings = read(rest)
    from peftkit.tracking.quiet import chatter_to

    with chatter_to(None, settings.verbose):  # libraries speak while they are imported
        from peftkit.flows.data_check import Asked
        from peftkit.flows.data_check import check as check_rows
    asked = Asked(_path(own, "fix"), _path(own, "json"), _names(own, "only"), _names(own, "skip"))
    return check_rows(settings, asked)


def _show_check_help() -> None:
    from peftkit.cli.help import first_sentence, show_settings, two_columns
    from peftkit.cli.screen import stdout
    from peftkit.data.doctor import CHECKS

    show_settings(chosen([]), only=SECTIONS, command=CHECK_USAGE)
    rows = [(name, first_sentence(CHECKS[name].find.__doc__) + " *" * CHECKS[name].model) for name in CHECKS]
    two_columns(stdout(), "checks", "Those with a * read rows as the model does, and run if --model is named.", rows)
    stdout().print(CHECK_HELP, markup=False)


def _path(own: Mapping[str, str], name: str) -> Path | None:
    return Path(own[name]).expanduser() if name in own else None


def _names(own: Mapping[str, str], name: str) -> tuple[str, ...]:
    return tuple(one for one in own.get(name, "").split(",") if one)


def _take_rows(words: Sequence[str], default: int = 3) -> tuple[int, list[str]]:
    """`--rows N` or `--rows=N`, and the other words."""
    own, rest = take(words, ("rows",), empty=True)
    number = own.get("rows", str(default))
    if not number.isdecimal() or int(number) == 0:
        raise ConfigError(f"--rows takes a whole number above 0; got {number}")
    return int(number), rest


def take(words: Sequence[str], names: Sequence[str], empty: bool = False) -> tuple[dict[str, str], list[str]]:
    """The command's own words, `--name VALUE` or `--name=VALUE`, and the others. A value is there, or may be `empty`."""
    flags = {f"--{name}": name for name in names}
    own: dict[str, str] = {}
    rest: list[str] = []
    left = list(words)
    while left:
        flag, equals, value = left.pop(0).partition("=")
        if flag not in flags:
            rest.append(flag + equals + value)
            continue
        if not equals:
            value = left.pop(0) if left else ""
        if not empty and (not value or value.startswith("--")):
            raise ConfigError(f"{flag} needs a value: {flag} {WANTED.get(flag, 'PATH')}")
        own[flags[flag]] = value
    return own, rest
