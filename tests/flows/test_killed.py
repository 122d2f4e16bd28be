"""kill -9 at any instant, of any process: the next start goes on, and the end is bit for bit that of the uninterrupted run.

PEFTKIT_KILLS      instants at which each of the 16 cases is killed (5)
PEFTKIT_KILL_SEED  what the instants are drawn from (1)

What is told of a failure can be repeated with the same two numbers.
"""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pytest

from tests.flows.killed import Case, Trials
from tests.forked import Server
from tests.tiny import save_tiny

pytestmark = pytest.mark.launch

KILLS = int(os.environ.get("PEFTKIT_KILLS", "5"))
SEED = os.environ.get("PEFTKIT_KILL_SEED", "1")
CASES = [
    Case(strategy, zero, processes) for strategy in ("full", "lora") for zero in (0, 1, 2, 3) for processes in (1, 2)
]


@pytest.fixture(scope="module")
def folder(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that drops out, so that random numbers matter, and rows."""
    made = tmp_path_factory.mktemp("killed")
    (first,) = server.start(["version"], made / "said")
    first.wait()  # from here on the server has imported everything, and times are those of trainings
    save_tiny(made / "llama", "llama", attention_dropout=0.1)
    rows = [{"prompt": f"say {row}", "response": "word " * (1 + row % 5)} for row in range(20)]
    (made / "chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return made


@pytest.mark.parametrize("case", CASES, ids=str)
def test_killed_at_any_instant_it_ends_as_if_nothing_had_been(case: Case, server: Server, folder: Path) -> None:
    trials = Trials(server, folder, case)
    trials.begin()
    draw, number = random.Random(f"{SEED} {case}"), 0
    for _ in range(KILLS):
        if not trials.kill(f"run {number}", draw):
            trials.kill(f"run {number}", draw)  # a finished run that is started again: its export is made anew
            trials.ends_as_if_nothing_had_been(f"run {number}")
            number += 1
    trials.ends_as_if_nothing_had_been(f"run {number}")
    print(f"{case}: {trials.killed} kills; {'; '.join(trials.told)}")
