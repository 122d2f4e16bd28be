"""What a test does inside a training's own process: PEFTKIT_TEST_HOOK=tests.flows.hooks:at_a_step, by what the environment says.

TEST_PROCESS   the process that it happens to
TEST_STEP      the step (or, with `in_an_evaluation`, the batch) after which it happens
TEST_DO        a signal's number, or `raise`, `sleep`, `end`
"""

from __future__ import annotations

import os
import signal
import time
from typing import Any

from peftkit.flows.attempt import Attempt
from peftkit.flows.train import Underway


def at_a_step() -> None:
    """After the step."""
    advance = Attempt.advance

    def then(self: Attempt, step: int) -> None:
        advance(self, step)
        if step == int(os.environ["TEST_STEP"]):
            do_it()

    Attempt.advance = then  # type: ignore[method-assign]


def slowly() -> None:
    """Every step takes a tenth of a second."""
    advance = Attempt.advance

    def then(self: Attempt, step: int) -> None:
        advance(self, step)
        time.sleep(0.1)

    Attempt.advance = then  # type: ignore[method-assign]


def in_the_beginning() -> None:
    """When the model is about to be loaded."""
    import peftkit.flows.train as flow

    make = flow.make_job

    def then(*words: Any) -> Any:
        do_it()
        return make(*words)

    flow.make_job = then


def in_an_evaluation() -> None:
    """Before so many more batches of evaluations, once a step was taken."""
    pause, seen = Underway.pause, [0]

    def then(self: Underway) -> None:
        seen[0] += bool(self.progress.step)
        if seen[0] == int(os.environ["TEST_STEP"]):
            do_it()
        pause(self)

    Underway.pause = then  # type: ignore[method-assign]


def do_it() -> None:
    if os.environ.get("RANK", "0") != os.environ["TEST_PROCESS"]:
        return
    what = os.environ["TEST_DO"]
    if what == "raise":
        raise RuntimeError("boom")
    if what == "sleep":
        time.sleep(600)
    if what == "end":
        os._exit(3)
    os.kill(os.getpid(), int(what))
    if int(what) != signal.SIGSTOP:
        time.sleep(0.01)  # let the handler run


def impatient() -> None:
    """Nobody waits for the training that has the folder."""
    import peftkit.flows.sole as flow

    flow.HERE = 1.0
