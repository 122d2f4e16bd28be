"""`peftkit bench`: settings -> some steps, and where their time and memory go."""

from __future__ import annotations

from pathlib import Path

from peftkit.cli.data import take
from peftkit.config.read import chosen, read
from peftkit.errors import ConfigError

USAGE = "bench [--measure 5] [--trace FILE]"


def run(words: list[str]) -> int:
    """Take the same settings as `peftkit train`, `--measure STEPS` and `--trace FILE`."""
    if {"--help", "-h"} & set(words):
        from peftkit.cli.help import show_settings

        show_settings(chosen([]), command=USAGE)
        return 0
    own, rest = take(words, ("measure", "trace"))
    steps = own.get("measure", "5")
    if not steps.isdecimal() or int(steps) == 0:
        raise ConfigError(f"--measure takes a number of steps above 0; got {steps}")
    settings = read(rest)
    from peftkit.tracking.quiet import chatter_to

    with chatter_to(None, settings.verbose):  # libraries speak while they are imported
        from peftkit.flows.bench import bench
    bench(settings, int(steps), Path(own["trace"]).expanduser() if "trace" in own else None)
    return 0
