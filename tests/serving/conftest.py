"""One service of chats and one of labels for all tests that only ask."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.flows.test_export import trained_run
from tests.serving.running import QUESTIONS, Running, chat_run, exported, predicted, running


@dataclass(frozen=True)
class Chats:
    """Two adapters of one base, and what `peftkit predict` has each of them answer to QUESTIONS."""

    folder: Path
    one: Path
    two: Path
    answers: dict[str, list[str]]


@pytest.fixture(scope="session")
def chats(tmp_path_factory: pytest.TempPathFactory) -> Chats:
    folder = tmp_path_factory.mktemp("chats")
    runs = [chat_run(folder / "one")]
    runs.append(chat_run(folder / "two", folder / "one" / "base", strategy={"name": "lora", "rank": 4}))
    one, two = (exported(run, "adapter") for run in runs)
    rows = [{"messages": [{"role": "user", "content": question}]} for question in QUESTIONS]
    answers = {
        name: [row["generated"] for row in predicted(place, rows, folder)]
        for name, place in (("one", one), ("two", two))
    }
    return Chats(folder, one, two, answers)


@pytest.fixture(scope="session")
def chatting(chats: Chats) -> Iterator[Running]:
    """A service of both, four texts at a time."""
    with running({"one": chats.one, "two": chats.two}, batch=4) as found:
        yield found


@pytest.fixture(scope="session")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier's export."""
    found, _ = trained_run(tmp_path_factory.mktemp("labels"), "bert")
    return exported(found.path, "merged")


@pytest.fixture(scope="session")
def labelling(labels: Path) -> Iterator[Running]:
    with running({"labels": labels}, batch=4) as found:
        yield found
