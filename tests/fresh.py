"""What a fresh process would do, done in this one: for tests of what comes of it; others start real ones."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from peftkit.evaluation import fresh


@contextmanager
def in_this_process() -> Iterator[None]:
    def run(words: list[str], **_: Any) -> SimpleNamespace:
        try:
            fresh.main(Path(words[-1]))
        except Exception:
            return SimpleNamespace(returncode=1, stderr=traceback.format_exc())
        return SimpleNamespace(returncode=0, stderr="")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fresh, "subprocess", SimpleNamespace(run=run))
        yield
