"""Environments of the peers that do not run on peftkit's libraries: each is made when it is first needed, with pinned versions."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.bench.workloads import CACHE, once

TORCH = "torch==2.13.0"


@dataclass(frozen=True)
class Environment:
    """A virtual environment of a peer's own."""

    name: str
    packages: tuple[str, ...]
    removed: tuple[str, ...] = ()
    """What the packages bring with them and must not be there."""
    hollow: tuple[str, ...] = ()
    """Modules that the peer imports without using them: empty ones take their place."""

    @property
    def folder(self) -> Path:
        return CACHE / "venvs" / self.name

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    @property
    def log(self) -> Path:
        return self.folder.with_name(f"{self.name}.log")

    def make(self) -> None:
        """Make it, unless it is there. SystemExit names the log if that fails, and leaves nothing half made."""
        once(self.folder, self.install)

    def install(self, folder: Path) -> None:
        print(f"  making {self.folder}; what pip says is in {self.log}", file=sys.stderr, flush=True)
        try:
            with self.log.open("wb") as output:
                for words in self.commands(folder):
                    if subprocess.run(words, stdout=output, stderr=subprocess.STDOUT, check=False).returncode:
                        raise SystemExit(f"no environment of {self.name}: {' '.join(words)} failed, see {self.log}")
            for module in self.hollow:
                next(folder.glob("lib/python*/site-packages")).joinpath(f"{module}.py").touch()
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise

    def commands(self, folder: Path) -> Iterator[list[str]]:
        """How it is made: torch first, so that it stays the same."""
        pip = [str(folder / "bin" / "python"), "-m", "pip"]
        yield [sys.executable, "-m", "venv", str(folder)]
        yield [*pip, "install", TORCH]
        yield [*pip, "install", *self.packages, TORCH]
        if self.removed:
            yield [*pip, "uninstall", "--yes", *self.removed]


LITGPT = Environment("litgpt", ("litgpt==0.5.13", "requests"))
TORCHTUNE = Environment("torchtune", ("torchtune==0.6.1", "torchao==0.13.0"))
"""Newer torchao has no NF4 where torchtune looks for it."""
LLAMAFACTORY = Environment(
    "llamafactory",
    ("llamafactory==0.9.5", "bitsandbytes==0.50.2"),
    removed=("torchvision", "torchaudio"),
    hollow=("torchaudio",),
)
"""Both come built for CUDA alone, and cannot be imported beside torch for CPUs."""
