"""`peftkit export RUN --to merged`: a run -> what can be deployed."""

from __future__ import annotations

from pathlib import Path

from peftkit.cli.words import Parser
from peftkit.errors import ConfigError
from peftkit.registry import did_you_mean


def run(words: list[str]) -> int:
    """Export the run's newest checkpoint, or the one that is named."""
    parser = Parser("export", "Turn a run into what can be deployed; every export is compared with what was trained.")
    parser.add_argument("run", metavar="RUN", type=Path, help="the run's folder")
    parser.add_argument("--to", default="merged", help="adapter, merged, ...: see peftkit choices (default: merged)")
    which = "last, best, or a step such as 100 (default: the run's --checkpoint.final)"
    parser.add_argument("--checkpoint", default=None, help=which)
    parser.add_argument("--verbose", action="store_true", help="show libraries' messages and tracebacks")
    try:
        asked = parser.parse_args(words)
    except SystemExit as after_help:
        return int(after_help.code or 0)
    if not (asked.run / "config.yaml").is_file():
        raise ConfigError(f"{asked.run} is no run's folder: it has no config.yaml")
    _check_exporter(asked.to)
    from peftkit.flows.export import export

    export(asked.run, to=asked.to, checkpoint=asked.checkpoint, verbose=asked.verbose)
    return 0


def _check_exporter(name: str) -> None:
    """Refuse a misspelt name before torch is imported."""
    from peftkit.exporters import Exporter

    known = Exporter.registry
    if name not in known:
        raise ConfigError(
            f"--to: no exporter is named {name!r}{did_you_mean(name, known)}; there are: {', '.join(known)}"
        )
