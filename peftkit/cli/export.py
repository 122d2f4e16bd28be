"""`peftkit export RUN --to merged`: a run -> what can be deployed."""

from __future__ import annotations

from pathlib import Path

from peftkit.cli.words import Parser, a_run, allow_code
from peftkit.errors import ConfigError
from peftkit.registry import did_you_mean


def run(words: list[str]) -> int:
    """Export the run's newest checkpoint, or the one that is named."""
    parser = Parser("export", "Turn a run into what can be deployed; every export is compared with what was trained.")
    parser.add_argument("run", metavar="RUN", type=Path, help="the run's folder")
    parser.add_argument("--to", default="merged", help="adapter, merged, ...: see peftkit choices (default: merged)")
    which = "last, best, average (of the last ones), or a step such as 100 (default: the run's --checkpoint.final)"
    parser.add_argument("--checkpoint", default=None, help=which)
    allow_code(parser)
    parser.add_argument("--verbose", action="store_true", help="show libraries' messages and tracebacks")
    asked = parser.read(words)
    if asked is None:
        return 0
    folder = a_run(asked.run)
    _check_exporter(asked.to)
    from peftkit.flows.export import export

    export(folder, to=asked.to, checkpoint=asked.checkpoint, verbose=asked.verbose, trust=asked.trust)
    return 0


def _check_exporter(name: str) -> None:
    """Refuse a misspelt name before torch is imported."""
    from peftkit.exporters import Exporter

    known = Exporter.registry
    if name not in known:
        raise ConfigError(
            f"--to: no exporter is named {name!r}{did_you_mean(name, known)}; there are: {', '.join(known)}"
        )
