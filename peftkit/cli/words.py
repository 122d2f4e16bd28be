"""Words of the commands that are no training: a small parser whose mistakes are ConfigErrors."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from peftkit.errors import ConfigError
from peftkit.registry import did_you_mean


class Parser(argparse.ArgumentParser):
    """argparse without abbreviations and without leaving the program by itself."""

    def __init__(self, command: str, description: str) -> None:
        super().__init__(prog=f"peftkit {command}", description=description, allow_abbrev=False)

    def read(self, words: Sequence[str]) -> argparse.Namespace | None:
        """The words' values; None if they only asked for help, which has been given."""
        try:
            return self.parse_args(words)
        except SystemExit:
            return None

    def error(self, message: str) -> NoReturn:
        unknown = re.search(r"unrecognized arguments: (--\S+)", message)
        flags = [flag for action in self._actions for flag in action.option_strings]
        near = did_you_mean(unknown[1], flags) if unknown else ""
        raise ConfigError(f"{self.prog}: {message}{near} ({self.prog} --help shows the way)")


def allow_code(parser: Parser) -> None:
    """The flag without which no Python code of a model's is run: what a folder says of it counts for nothing."""
    told = "run Python code that comes with the model; leave it off unless you have read that code"
    parser.add_argument(
        "--model.trust_remote_code", "--trust-remote-code", dest="trust", action="store_true", help=told
    )


def a_run(path: Path) -> Path:
    """The folder of a run, or a ConfigError."""
    if not (path / "config.yaml").is_file():
        raise ConfigError(f"{path} is no run's folder: it has no config.yaml")
    return path
