"""`peftkit compare RUN`: what the base answers, and what the tuned model answers."""

from __future__ import annotations

from pathlib import Path

from peftkit.cli.words import Parser
from peftkit.errors import ConfigError


def run(words: list[str]) -> int:
    """Show the first held-out prompts with both answers."""
    parser = Parser("compare", "The same held-out prompts, answered by the base and by the tuned model.")
    parser.add_argument("run", metavar="RUN", type=Path, help="the run's folder, with its merged export")
    parser.add_argument("--rows", type=int, default=3, help="how many prompts (default: 3)")
    try:
        asked = parser.parse_args(words)
    except SystemExit as after_help:
        return int(after_help.code or 0)
    if not (asked.run / "config.yaml").is_file():
        raise ConfigError(f"{asked.run} is no run's folder: it has no config.yaml")
    if asked.rows < 1:
        raise ConfigError(f"--rows {asked.rows}: at least 1")
    from peftkit.flows.compare import compare

    compare(asked.run, asked.rows)
    return 0
