"""`peftkit compare RUN`: what the base answers, and what the tuned model answers."""

from __future__ import annotations

from pathlib import Path

from peftkit.cli.words import Parser, a_run, allow_code
from peftkit.errors import ConfigError


def run(words: list[str]) -> int:
    """Show the first held-out prompts with both answers."""
    parser = Parser("compare", "The same held-out prompts, answered by the base and by the tuned model.")
    parser.add_argument("run", metavar="RUN", type=Path, help="the run's folder, with its merged export")
    parser.add_argument("--rows", type=int, default=3, help="how many prompts (default: 3)")
    allow_code(parser)
    asked = parser.read(words)
    if asked is None:
        return 0
    if asked.rows < 1:
        raise ConfigError(f"--rows {asked.rows}: at least 1")
    from peftkit.flows.compare import compare

    compare(a_run(asked.run), asked.rows, trust=asked.trust)
    return 0
