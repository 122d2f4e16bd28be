"""Saving while the training goes on: the processes take a snapshot together, and a thread of each writes it.

    with Saver(folder, world, base, identity, keep=2) as saver:
        for step in steps(...):
            saver.save(engine, progress)      # stands still for the snapshot alone
                                              # and joins the save before it, which may raise CheckpointError

The threads talk through the process group's store, never in collectives: the training's own are under way meanwhile.
"""

from __future__ import annotations

import itertools
import json
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Self

from torch._C._distributed_c10d import HashStore, PrefixStore
from torch.distributed.distributed_c10d import _get_default_store

from peftkit.engine.checkpoint import (
    PARTIAL,
    Progress,
    Snapshot,
    attempt,
    begin,
    complete,
    prune,
    snapshot,
    write_part,
)
from peftkit.engine.identity import Identity
from peftkit.engine.open import Engine
from peftkit.engine.pulse import beat
from peftkit.engine.space import is_of_disk
from peftkit.engine.world import LONGEST_WAIT, World
from peftkit.errors import CheckpointError, DiskError
from peftkit.run_folder import RunFolder, step_of

GRACE = 5.0
"""After an error, seconds for a save that is under way: the others may have failed likewise, and then it can be whole."""
POLLS = (0.001, 0.05)
"""Seconds between two looks for a note: the first ones, and the longest."""

_numbers = itertools.count()


class Saver:
    """Writes a run's checkpoints, at most one at a time, and leaves the newest `keep` (0: all) and the best.

    A save is over when it was joined: by the next one, `join`, or the end of the `with`.
    """

    def __init__(
        self,
        run: RunFolder,
        world: World,
        base: Mapping[str, str],
        identity: Identity | None = None,
        *,
        keep: int = 0,
        asynchronous: bool = True,
        tell: Callable[[str], None] = lambda text: None,
        log: Callable[[dict[str, Any]], None] = lambda row: None,
        done: Callable[[int, float], None] = lambda step, seconds: None,
    ) -> None:
        """`tell` hears of the first save, in words; `log` of each (in the thread), as numbers; `done` of its step and seconds."""
        self._run, self._world, self._base, self._identity = run, world, base, identity
        self._keep, self._asynchronous, self._tell, self._log, self._done = keep, asynchronous, tell, log, done
        self._notes = Notes(f"peftkit/saver-{next(_numbers)}", world)
        self._writing: Writing | None = None
        self._told = False
        self._saves = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *problem: object) -> None:
        if kind is None:
            self.join()
        elif self._writing:
            self._writing.give_up(GRACE)

    def save(self, engine: Engine, progress: Progress) -> Path:
        """Begin the checkpoint of `progress.step`; every process takes part. The folder that it will have.

        Raises CheckpointError on every process if any of them fails, in this save or the one before; what failed leaves
        nothing, and earlier checkpoints stay.
        """
        self.join()
        start = time.perf_counter()
        self._saves += 1
        final = self._run.checkpoint(progress.step)
        beside = final.with_name(final.name + PARTIAL)
        taken = snapshot(engine, progress, self._world)
        problem = self._world.share(attempt(lambda: begin(beside)) if self._world.first else None)
        if problem:
            raise failure(self._sentence(progress.step, problem))
        self._writing = Writing(progress.step, partial(self._write, taken, beside, final), self._farewell)
        self._writing.stall = time.perf_counter() - start
        self._writing.start()
        if not self._asynchronous:
            self.join()
        return final

    def join(self) -> None:
        """Wait until the save that is under way is over. Raises CheckpointError, on every process, if it failed."""
        writing, self._writing = self._writing, None
        if writing is None:
            return
        writing.wait()
        problem = self._world.share(writing.problem)
        if writing.bug:
            raise writing.bug
        if problem:
            raise failure(problem)
        self._report(writing)

    def look(self) -> None:
        """Tell of a save that is over by now, if one is; it waits for nothing."""
        if self._writing and self._writing.went_well():
            self._report(self._writing)

    def _report(self, writing: Writing) -> None:
        if writing.is_told:
            return
        writing.is_told = True
        self._done(writing.step, writing.stall + writing.seconds)
        if not self._told:
            self._told = True
            self._tell(writing.report)

    def _write(self, taken: Snapshot, beside: Path, final: Path, writing: Writing) -> None:
        """In the thread: this process's files; on the first one the rest, when all have written theirs."""
        start = time.perf_counter()
        digests: dict[str, str] = {}
        problem = attempt(lambda: digests.update(write_part(beside, taken, self._world)))
        self._notes.leave(self._note(self._world.process), [problem, digests])
        writing.seconds = time.perf_counter() - start
        if not self._world.first:
            return
        problem = attempt(lambda: self._complete(taken, beside, final, writing))
        if problem:
            shutil.rmtree(beside, ignore_errors=True)
            writing.problem = self._sentence(taken.progress.step, problem)
        else:
            writing.seconds = time.perf_counter() - start
            writing.report = self._counted(final, writing.stall, writing.seconds)

    def _complete(self, taken: Snapshot, beside: Path, final: Path, writing: Writing) -> None:
        names = [self._note(process) for process in range(self._world.processes)]
        everyones = [self._notes.take(name, writing.is_given_up) for name in names]
        for problem, _ in everyones:
            if problem:
                raise CheckpointError(problem)
        files = {name: digest for _, digests in everyones for name, digest in digests.items()}
        complete(beside, final, files, taken, self._world, self._base, self._identity)
        with suppress(OSError):  # what cannot be deleted now is at the next save, or start
            prune(self._run, self._keep, taken.progress.best_step)

    def _farewell(self, bug: BaseException) -> None:
        """What this process could not foresee, the others must hear of, too."""
        self._notes.leave(self._note(self._world.process), [told(bug), {}])

    def _note(self, process: int) -> str:
        return f"{self._saves}/{process}"

    def _counted(self, folder: Path, stall: float, write: float) -> str:
        size = sum(file.stat().st_size for file in folder.iterdir())
        row = {"step": step_of(folder), "bytes": size, "stall_seconds": stall, "write_seconds": write}
        with suppress(OSError):  # the checkpoint is good; that this cannot be written is worth no end
            self._log({**row, "asynchronous": self._asynchronous})
        return f"saved {folder.name}: {size / 1e6:,.1f} MB in {write:.2f} s; training stood still for {stall:.2f} s"

    def _sentence(self, step: int, problem: str) -> str:
        steps = [good for good in self._run.checkpoint_steps() if good != step]
        room = f"; make room on the disk of {self._run.path}" if is_of_disk(problem) else ""
        good = f"; {self._run.checkpoint(steps[-1]).name} is whole, go on from it with --resume" if steps else ""
        return f"the checkpoint of step {step} could not be written: {problem}{room}{good}"


def save(
    engine: Engine,
    run: RunFolder,
    progress: Progress,
    world: World,
    base: Mapping[str, str],
    mine: Identity | None = None,
) -> Path:
    """Write one checkpoint and wait for it, as `Saver` does; all others stay."""
    with Saver(run, world, base, mine, asynchronous=False) as saver:
        return saver.save(engine, progress)


class Writing:
    """A save that is under way in a thread, which ends with the program: a failing one must not be kept alive by it."""

    def __init__(self, step: int, action: Callable[[Writing], None], farewell: Callable[[BaseException], None]) -> None:
        self.step, self.stall, self.seconds = step, 0.0, 0.0
        self.is_told = False
        self.problem: str | None = None
        self.report = ""
        self._action, self._farewell = action, farewell
        self.bug: BaseException | None = None
        """An error that is none of a disk: raised at the join, as if it had happened there."""
        self._given_up = threading.Event()
        self._thread = threading.Thread(target=self._act, name="peftkit-save", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def went_well(self) -> bool:
        return not self._thread.is_alive() and not self.problem

    def is_given_up(self) -> bool:
        return self._given_up.is_set()

    def wait(self) -> None:
        """Until it is over."""
        while self._thread.is_alive():
            self._thread.join(0.5)  # with a limit, so that signals are still heard
            beat()  # writing is no hanging, however long it takes

    def give_up(self, seconds: float) -> None:
        """Wait so long for the others, and as long again for its own files alone."""
        self._thread.join(seconds)
        self._given_up.set()
        self._thread.join(seconds)

    def _act(self) -> None:
        try:
            self._action(self)
        except BaseException as bug:
            self.bug, self.problem = bug, told(bug)
            self._farewell(bug)


def failure(told: str) -> CheckpointError:
    """The error, of the kind that it is to blame on."""
    return DiskError(told) if is_of_disk(told) else CheckpointError(told)


def told(bug: BaseException) -> str:
    return f"{type(bug).__name__}: {bug}"


class Notes:
    """What processes tell each other without waiting for each other: JSON under a name, in the process group's store."""

    def __init__(self, room: str, world: World) -> None:
        alone = world.processes == 1
        self._store: Any = HashStore() if alone else PrefixStore(room, _get_default_store())

    def leave(self, name: str, value: Any) -> None:
        self._store.set(name, json.dumps(value))

    def take(self, name: str, given_up: Callable[[], bool]) -> Any:
        """The note, as soon as it is there. Raises CheckpointError if it will not be."""
        pause, end = POLLS[0], time.monotonic() + LONGEST_WAIT.total_seconds()
        while not self._store.check([name]):  # never `get` without: it would hold the store's lock while it waits
            if given_up() or time.monotonic() > end:
                raise CheckpointError("another process has gone before it had written its part")
            time.sleep(pause)
            pause = min(2 * pause, POLLS[1])
        value = json.loads(self._store.get(name))
        self._store.delete_key(name)
        return value
