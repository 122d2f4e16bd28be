"""For all tests: nothing is read from or written to the user's own cache, and one thread a process, as its workers have."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# The first example imports what the oracle needs, which takes longer than the 200 ms that it may.
settings.register_profile("peftkit", deadline=None)
settings.load_profile("peftkit")

# Before torch is imported: two threads that spin on a shared core are slower than one.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    kept = os.environ.get("PEFTKIT_TEST_CACHE")  # a folder that outlives the session: converted models
    folder = Path(kept) if kept else tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PEFTKIT_CACHE", str(folder))
        yield
