"""`peftkit export RUN --to merged`: a run -> what can be deployed."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftkit.cli.words import Parser, a_run, allow_code
from peftkit.errors import ConfigError

if TYPE_CHECKING:
    from peftkit.config.flags import Flag


def run(words: list[str]) -> int:
    """Export the run's newest checkpoint, or the one that is named."""
    from peftkit.config.export import Wanted
    from peftkit.config.read import read_section

    parser = Parser("export", "Turn a run into what can be deployed; every export is compared with what was trained.")
    parser.add_argument("run", metavar="RUN", type=Path, help="the run's folder")
    which = "last, best, average (of the last ones), or a step such as 100 (default: the run's --checkpoint.final)"
    parser.add_argument("--checkpoint", default=None, help=which)
    named = "name of the folder under RUN/export (default: the exporter's)"
    parser.add_argument("--as", dest="name", metavar="NAME", help=named)
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="write the export there instead")
    kept = "keep an export that misses its limits: its certificate, its card and `peftkit verify` say so"
    parser.add_argument("--force", action="store_true", help=kept)
    allow_code(parser)
    parser.add_argument("--verbose", action="store_true", help="show libraries' messages and tracebacks")
    add_settings(parser)
    asked = parser.read(words)
    if asked is None:
        return 0
    wanted = read_section(Wanted, asked.settings or (), "export")
    wanted.to.ready()
    if asked.name and asked.out:
        raise ConfigError("--as names a folder under RUN/export, and --out one elsewhere: give one of them")
    folder = a_run(asked.run)
    from peftkit.flows.export import export

    export(
        folder, to=wanted.to, checkpoint=asked.checkpoint, verbose=asked.verbose, trust=asked.trust,
        name=asked.name, out=asked.out, bounds=wanted.bounds, force=asked.force,
    )  # fmt: skip
    return 0


class _Note(argparse.Action):
    """Keeps each setting's words, in the order in which they were typed, for whoever knows what they mean."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        from peftkit.config.words import Said

        name = str(option_string).removeprefix("--")
        words = (values,) if isinstance(values, str) else tuple(values)
        said = Said(words, negated=name.startswith("no-"))
        namespace.settings = [*(namespace.settings or ()), (name.removeprefix("no-"), said)]


def add_settings(parser: Parser) -> None:
    """A flag for each limit, and for every setting of every exporter; one that several have is told at the first."""
    from peftkit.cli.help import first_sentence
    from peftkit.config.export import Wanted
    from peftkit.config.flags import flags
    from peftkit.exporters import Exporter

    parser.set_defaults(settings=None)
    limits = parser.add_argument_group("limits", "They replace those that follow from the exporter.")
    groups = {"to": parser.add_argument_group("exporters")}
    seen: set[str] = set()
    for name in Exporter.registry:
        exporter = Exporter.registry[name]
        for flag in flags(Wanted, {("to",): exporter}):
            if flag.short or flag.word in seen:
                continue
            seen.add(flag.word)
            if len(flag.path) > 1 and name not in groups:
                groups[name] = parser.add_argument_group(f"--to {name}", first_sentence(exporter.__doc__))
            _add(limits if flag.path[0] != "to" else groups["to" if len(flag.path) == 1 else name], flag)


def _add(group: Any, flag: Flag) -> None:
    from peftkit.config.kinds import describe, is_switch, sequence_of

    words = [flag.word, f"--no-{flag.name}"] if is_switch(flag.kind) else [flag.word]
    shape: Any = 0 if is_switch(flag.kind) else "+" if sequence_of(flag.kind) else None
    default = "" if flag.default is None else f"; default {flag.default}"
    told = f"{' '.join(flag.help.split())} ({describe(flag.kind)}{default})".replace("%", "%%")
    group.add_argument(
        *words, action=_Note, nargs=shape, dest="settings", metavar="VALUE" if shape != 0 else None, help=told
    )
