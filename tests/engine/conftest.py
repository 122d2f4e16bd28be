"""A world of one, in the test's own process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from peftkit.engine.world import World, joined


@pytest.fixture
def alone() -> Iterator[World]:
    """This process as a world of one."""
    with joined() as world:
        yield world
