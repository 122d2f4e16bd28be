"""What the tests of bad input share: run words that have to fail, and read what was said."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from peftkit.cli.main import main
from tests.flows.interrupted import Runs, prepared
from tests.forked import Server

Refused = Callable[[list[str], int], str]


@pytest.fixture
def refused(capfd: pytest.CaptureFixture[str]) -> Refused:
    """Run words that have to fail with this exit code; what was said on stderr, which is one message and no traceback."""

    def run_words(words: list[str], code: int) -> str:
        capfd.readouterr()
        assert main(words) == code, capfd.readouterr().err
        out, said = capfd.readouterr()
        assert "Traceback" not in out + said
        assert said.startswith(("peftkit: error: ", "peftkit: wrong settings: ")), said
        assert said.count("\n") <= 4, said
        return said

    return run_words


@pytest.fixture(scope="session")
def runs(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Trainings to interrupt."""
    return prepared(server, tmp_path_factory.mktemp("interrupted"))
