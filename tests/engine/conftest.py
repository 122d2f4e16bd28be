"""One launch on two processes for all the CHECKS of this folder's modules that are asked for; and a world of one, here."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from peftkit.engine.world import World, joined
from tests.launch import torchrun


@dataclass(frozen=True)
class Together:
    """What the two processes found, and where."""

    out: Path
    said: list[dict[str, str]]
    output: str

    def wrong(self, module: str, check: str) -> str:
        """The tracebacks of a check; nothing if it went well on both."""
        name = f"{module} {check}"
        if len(self.said) < 2 or any(name not in mine for mine in self.said):
            return f"it was not reached:\n{self.output[-4000:]}"
        return "\n".join(f"process {number}: {mine[name]}" for number, mine in enumerate(self.said) if mine[name])

    def folder(self, module: str, check: str) -> Path:
        """Where the check wrote."""
        return self.out / module / check


@pytest.fixture(scope="session")
def together(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Together:
    modules = {getattr(item, "module", None) for item in request.session.items}
    names = sorted(module.__name__ for module in modules if hasattr(module, "CHECKS"))
    out = tmp_path_factory.mktemp("together")
    done = torchrun(2, Path(__file__).with_name("together.py"), out, *names, timeout=800)
    said = [json.loads(file.read_text()) for file in sorted(out.glob("process-*.json"))]
    return Together(out, said, done.stdout)


@pytest.fixture
def alone() -> Iterator[World]:
    """This process as a world of one."""
    with joined() as world:
        yield world
