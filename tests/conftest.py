"""For all tests: nothing is read from or written to the user's own cache, and one thread a process, as its workers have."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from tests.forked import Server, in_place_of_subprocess
from tests.launch import torchrun
from tests.slurm.cluster import Cluster, missing

pytest_plugins = ["tests.workers"]

# The first example imports what the oracle needs, which takes longer than the 200 ms that it may.
settings.register_profile("peftkit", deadline=None)
settings.load_profile("peftkit")

# Before torch is imported: two threads that spin on a shared core are slower than one.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    kept = os.environ.get("PEFTKIT_TEST_CACHE")  # a folder that outlives the session: converted models
    beside = tmp_path_factory.getbasetemp().parent / "peftkit-cache"  # of all workers
    shared = beside if "PYTEST_XDIST_WORKER" in os.environ else None
    folder = Path(kept) if kept else shared or tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PEFTKIT_CACHE", str(folder))
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(scope="session")
def whole_cluster() -> Iterator[Cluster]:
    """A real SLURM for the whole session, started when the first test asks for it."""
    if reason := missing():
        pytest.skip(reason)
    folder = Path(tempfile.mkdtemp(prefix="peftkit-slurm-", dir="/tmp"))  # a socket's path has 108 bytes
    with Cluster(folder) as cluster:
        yield cluster
    shutil.rmtree(folder)


@pytest.fixture
def cluster(whole_cluster: Cluster) -> Iterator[Cluster]:
    """The session's SLURM with all nodes idle; what a test broke is mended after it."""
    yield whole_cluster
    whole_cluster.mend()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Tests that could not meet a real SLURM are counted where nobody overlooks them."""
    without = [report for report in terminalreporter.stats.get("skipped", []) if "slurm" in report.keywords]
    if without:
        reason = str(without[0].longrepr[2]).removeprefix("Skipped: ")
        terminalreporter.write_line(f"{len(without)} TESTS OF SLURM DID NOT RUN: {reason}", red=True, bold=True)


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
    """One launch on two processes for the CHECKS of all modules that are asked for."""
    asking = [item for item in request.session.items if "together" in getattr(item, "fixturenames", ())]
    names = sorted({item.module.__name__ for item in asking})  # type: ignore[attr-defined]
    out = tmp_path_factory.mktemp("together")
    done = torchrun(2, Path(__file__).parent / "engine" / "together.py", out, *names, timeout=800)
    said = [json.loads(file.read_text()) for file in sorted(out.glob("process-*.json"))]
    return Together(out, said, done.stdout)


@pytest.fixture(scope="session")
def _started() -> Iterator[Callable[[], Server]]:
    """The session's fork server, which starts when the first asks for it."""
    with ExitStack() as until_the_end:
        yield cache(lambda: until_the_end.enter_context(Server()))


@pytest.fixture(scope="session")
def server(_started: Callable[[], Server]) -> Server:
    """Forks `peftkit` commands, without the seconds of importing."""
    return _started()


@pytest.fixture(autouse=True, scope="session")
def _forks_for_exports(_started: Callable[[], Server]) -> Iterator[None]:
    """An export is opened in a process that has the imports and nothing else, unless a test wants `new_processes`."""
    from peftkit.evaluation import fresh  # it imports torch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fresh, "subprocess", in_place_of_subprocess(lambda: _started().desk))
        yield


@pytest.fixture(scope="module")
def new_processes() -> Iterator[None]:
    """For a module's tests, whose exports are opened in processes that begin with nothing, as a user's are."""
    from peftkit.evaluation import fresh

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fresh, "subprocess", subprocess)
        yield


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium (playwright's Browser); launch/test.sh installs one where it may."""
    from playwright.sync_api import sync_playwright

    program = shutil.which("chromium")
    if program is None:
        pytest.skip("there is no chromium here")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield opened
        opened.close()
