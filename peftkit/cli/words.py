"""Words of the commands that are no training: a small parser whose mistakes are ConfigErrors."""

from __future__ import annotations

import argparse
import re
from typing import NoReturn

from peftkit.errors import ConfigError
from peftkit.registry import did_you_mean


class Parser(argparse.ArgumentParser):
    """argparse without abbreviations and without leaving the program by itself."""

    def __init__(self, command: str, description: str) -> None:
        super().__init__(prog=f"peftkit {command}", description=description, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        unknown = re.search(r"unrecognized arguments: (--\S+)", message)
        flags = [flag for action in self._actions for flag in action.option_strings]
        near = did_you_mean(unknown[1], flags) if unknown else ""
        raise ConfigError(f"{self.prog}: {message}{near} ({self.prog} --help shows the way)")
