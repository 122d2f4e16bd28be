"""Which tests share a worker of `pytest -n 2 --dist loadfile`: those of a file, and those that share what takes long to make.

pytest-xdist's own groups (`--dist loadgroup`) are not seen under pytest 9.2, so the files are asked what they use.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = {
    "real": r"\bmark\.real\b",
    "promises": r"\btrained: Path\b",
    "slurm": r"\b(whole_cluster|cluster): Cluster\b|\bdesk: Desk\b",
    "together": r"\btogether: Together\b",
    "forked": r"\bserver: Server\b|\bruns: Runs\b",
}
"""A name for what is shared, and how a file says that it uses it; the heaviest begin, a real model in a process that is new."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The heaviest begin, so that no worker is left alone with one of them in the end."""
    order = list(HEAVY)
    items.sort(key=lambda item: order.index(name) if (name := shared(item.nodeid)) in order else len(order))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """xdist asks this in the process that hands out the tests, which knows them by their names alone."""
    from xdist.scheduler import LoadScopeScheduling

    class ByWhatIsShared(LoadScopeScheduling):  # type: ignore[misc, unused-ignore]
        def _split_scope(self, nodeid: str) -> str:
            return shared(nodeid)

    return ByWhatIsShared(config, log)


def shared(nodeid: str) -> str:
    """What the test shares with others: one of HEAVY, or its file."""
    return _of_file(nodeid.partition("::")[0])


@cache
def _of_file(file: str) -> str:
    text = (ROOT / file).read_text(encoding="utf-8")
    return next((name for name, used in HEAVY.items() if re.search(used, text)), file)
