"""What tests that open engines over a model share."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from peftkit.engine.world import World, joined


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with joined() as world:
        yield world


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    """A ZeRO-3 job that is in a cycle would leave transformers in its way of making models."""
    yield
    gc.collect()
