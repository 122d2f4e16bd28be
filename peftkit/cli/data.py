"""`peftkit data show`: rows as the model will see them."""

from __future__ import annotations

from collections.abc import Sequence

from peftkit.config.read import chosen, read
from peftkit.errors import ConfigError


def run(words: list[str]) -> int:
    """Take the same settings as `peftkit train`, and `--rows N`."""
    if {"--help", "-h"} & set(words):
        from peftkit.cli.help import show_settings

        show_settings(chosen([]), only=("task", "data", "model"), command="data show [--rows 3]")
        return 0
    rows, rest = _take_rows(words)
    settings = read(rest)
    from peftkit.flows.data_show import show

    show(settings, rows)
    return 0


def _take_rows(words: Sequence[str], default: int = 3) -> tuple[int, list[str]]:
    """`--rows N` or `--rows=N`, and the other words."""
    spread = [part for word in words for part in (word.split("=", 1) if word.startswith("--rows=") else [word])]
    if "--rows" not in spread:
        return default, spread
    at = spread.index("--rows")
    number = spread[at + 1] if at + 1 < len(spread) else ""
    if not number.isdecimal() or int(number) == 0:
        raise ConfigError(f"--rows takes a whole number above 0; got {number}")
    return int(number), spread[:at] + spread[at + 2 :]
