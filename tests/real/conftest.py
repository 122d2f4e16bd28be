"""Real models as folders, and a training as a notebook would call it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import peftkit
from tests.real import efficientnet_lite, whisper_ct2
from tests.real.carriers import carrier, converted

Train = Callable[..., Path]


@pytest.fixture(autouse=True, scope="module")
def _new_processes(new_processes: None) -> None:
    """What a real model has learnt is opened as a user opens it."""


@pytest.fixture(scope="session")
def minilm() -> str:
    """all-MiniLM-L6-v2: six layers of BERT, taught to give sentences of one meaning one place."""
    return str(carrier("minilm"))


@pytest.fixture(scope="session")
def whisper() -> str:
    return str(converted("whisper", whisper_ct2.convert))


@pytest.fixture(scope="session")
def efficientnet() -> str:
    return str(converted("efficientnet", efficientnet_lite.convert))


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> Train:
    """`peftkit.train` with these settings; returns the run's folder."""

    def trained(**settings: Any) -> Path:
        return peftkit.train(peftkit.Run(out=tmp_path_factory.mktemp("real") / "run", **settings))

    return trained
