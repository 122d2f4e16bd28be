"""Trainings that are killed again and again at instants drawn at random, and what must hold after each kill and in the end.

In a forked training `count_events` counts what it does to files of its run and its cache (audit events of Python: open, rename,
mkdir, remove, ...) and, where it was told to, sends SIGKILL before the n-th of them: so saves, prunes, exports and cache builds
are hit between any two of their operations, and the same draw hits the same place again. Other kills come by the clock.

KILL_EVENT      before which event; 0: never
KILL_PROCESS    the process that counts for this
KILL_ALL        1: all processes at once, not this one alone
KILL_BELOW      folders, with colons between them
KILL_DESK       a folder for the processes' ids and their numbers of events
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peftkit.engine.checkpoint import verify
from peftkit.run_folder import RunFolder
from peftkit.status import read_status
from tests.forked import Process, Server

STEPS = 8
EVENTS = {
    "open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.symlink", "os.truncate", "shutil.rmtree", "os.scandir",
}  # fmt: skip
LAUNCHER = 1.5
"""Seconds after which a launcher ends what one of its processes left behind."""
LEFT = (".partial", ".part", ".old")
"""Endings of names that stand for something half-done."""


def count_events() -> None:
    """In the training's process (PEFTKIT_TEST_HOOK)."""
    process, own, desk = os.environ.get("RANK", "0"), os.getpid(), Path(os.environ["KILL_DESK"])
    (desk / f"{process}.pid").write_text(f"{own}")
    deadly = int(os.environ["KILL_EVENT"]) if os.environ["KILL_PROCESS"] == process else 0
    below, seen = tuple(os.environ["KILL_BELOW"].split(":")), [0]
    counter = os.open(desk / f"{process}.events", os.O_CREAT | os.O_WRONLY)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in EVENTS and os.getpid() == own and str(arguments[0]).startswith(below):
            seen[0] += 1
            os.pwrite(counter, str(seen[0]).encode(), 0)
            if seen[0] == deadly:
                kill_all(desk) if os.environ["KILL_ALL"] == "1" else os.kill(own, signal.SIGKILL)

    sys.addaudithook(hook)


def kill_all(desk: Path) -> None:
    for pid in sorted((int(file.read_text()) for file in desk.glob("*.pid")), key=lambda pid: pid == os.getpid()):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@dataclass(frozen=True)
class Case:
    """What is trained."""

    strategy: str
    zero: int
    processes: int

    def __str__(self) -> str:
        return f"{self.strategy}-zero{self.zero}-{self.processes}"


@dataclass
class Trials:
    """Kills trainings of one case, and compares how they end with the one that was left alone."""

    server: Server
    folder: Path
    case: Case
    more: tuple[str, ...] = ()
    told: list[str] = field(default_factory=list)
    """What was done, for the one who has to repeat it."""
    killed: int = 0

    def begin(self) -> None:
        """The run that is left alone."""
        start = time.monotonic()
        self._live("whole")
        self.seconds = time.monotonic() - start
        self.events = [int((self._desk("whole") / f"{n}.events").read_text()) for n in range(self.case.processes)]

    def kill(self, name: str, draw: random.Random) -> bool:
        """Go on with the run, and kill it at some instant; False if it came to its end before that."""
        process, everyone = draw.randrange(self.case.processes), draw.random() < 0.5
        by_the_clock = draw.random() < 0.4
        event = 0 if by_the_clock else 1 + draw.randrange(self.events[process])
        seconds = draw.uniform(0, self.seconds)
        when = f"after {seconds:.3f} s" if by_the_clock else f"before event {event}"
        self.told.append(f"{name}: process {'all' if everyone else process} {when}")
        exported = (self._out(name) / "export/adapter").is_dir()
        world = self._start(name, KILL_EVENT=f"{event}", KILL_PROCESS=f"{process}", KILL_ALL=f"{int(everyone)}")
        if by_the_clock:
            time.sleep(seconds)
            for one in world if everyone else [world[process]]:
                one.kill()
        was_killed = self._end(world)
        self.killed += was_killed
        self._is_sound(name, exported)
        return was_killed

    def ends_as_if_nothing_had_been(self, name: str) -> None:
        """Go on to the end; that is bit for bit the one of the run that was left alone."""
        self._live(name)
        found, expected = self._state(name), self._state("whole")
        assert found.keys() == expected.keys(), self._why(f"{found.keys() ^ expected.keys()}")
        assert not [key for key in found if found[key] != expected[key]], self._why("these differ")
        assert self._rows(name) == self._rows("whole"), self._why("metrics.jsonl")
        left = [path for path in self._out(name).rglob("*") if path.name.endswith(LEFT)]
        left += [path for path in self._cache(name).rglob("*") if path.name.endswith(LEFT)]
        assert not left, self._why(f"{left}")
        status = read_status(self._out(name) / "status.json")
        assert status and (status.state, status.checkpoint) == ("done", STEPS), self._why(f"{status}")

    def _end(self, world: list[Process]) -> bool:
        """Wait for a world of which one may have been killed: soon the launcher ends the others. Whether one was."""
        while not any(one.ended(0.05) for one in world):
            pass
        until = time.monotonic() + LAUNCHER
        while time.monotonic() < until and not all(one.ended(0.05) for one in world):
            pass
        if any(one.ended(0) and one.wait() for one in world):
            for one in world:
                one.kill()
        return -signal.SIGKILL in [one.wait() for one in world]

    def _live(self, name: str) -> None:
        world = self._start(name)
        codes = [one.wait() for one in world]
        assert not any(codes), self._why(f"{codes}\n{self._said(world)}")

    def _start(self, name: str, **env: str) -> list[Process]:
        desk = self._desk(name)
        desk.mkdir(parents=True, exist_ok=True)
        for file in desk.glob("*.pid"):
            file.unlink()
        words = ["train", "--model", f"{self.folder}/llama", "--data", f"{self.folder}/chat.jsonl"]
        words += ["--data.holdout", "0.1", "--strategy", self.case.strategy, "--deepspeed", f"zero{self.case.zero}"]
        words += ["--out", f"{self._out(name)}", "--batch.total", "4", "--batch.micro", "2", "--steps", f"{STEPS}"]
        words += ["--eval.every", "4", "--checkpoint.every", "2", "--checkpoint.keep", "2", "--resume", *self.more]
        hook = {"PEFTKIT_TEST_HOOK": "tests.flows.killed:count_events", "KILL_DESK": f"{desk}"}
        hook |= {"KILL_BELOW": f"{self._out(name)}:{self._cache(name)}", "PEFTKIT_CACHE": f"{self._cache(name)}"}
        hook |= {"KILL_EVENT": "0", "KILL_PROCESS": "0", "KILL_ALL": "0"}
        return self.server.start(words, self.folder / "said", self.case.processes, **{**hook, **env})

    def _is_sound(self, name: str, exported: bool) -> None:
        """Whatever has a checkpoint's name is one; an export that was there is there, and has all its files."""
        folder = RunFolder(self._out(name))
        problems = [problem for step in folder.checkpoint_steps() for problem in verify(folder.checkpoint(step))]
        assert not problems, self._why(f"{problems}")
        export = folder.export("adapter")
        assert export.is_dir() or not exported, self._why("the export was lost")
        if export.is_dir():
            files = json.loads((export / "certificate.json").read_text())["files"]
            wrong = [file for file, digest in files.items() if sha256(export / file) != digest]
            assert files and not wrong, self._why(f"{wrong}")

    def _state(self, name: str) -> dict[str, str]:
        """Digests of what has to be equal: every checkpoint's weights, optimizer state, random numbers and progress; the export."""
        out = self._out(name)
        files = [*out.glob("checkpoints/*/*"), *out.glob("export/*/*.safetensors"), out / "splits.json"]
        return {str(file.relative_to(out)): sha256(file) for file in files if file.name != "manifest.json"}

    def _rows(self, name: str) -> list[dict[str, Any]]:
        rows = [json.loads(line) for line in (self._out(name) / "metrics.jsonl").read_text().splitlines()]
        return [{**row, "seconds": 0, "memory": 0} for row in rows]

    def _out(self, name: str) -> Path:
        return self.folder / f"{self.case}" / name

    def _cache(self, name: str) -> Path:
        return self.folder / f"{self.case}" / f"{name}-cache"

    def _desk(self, name: str) -> Path:
        return self.folder / f"{self.case}" / f"{name}-desk"

    def _said(self, world: list[Process]) -> str:
        return "\n".join(one.said()[-3000:] for one in world)

    def _why(self, what: str) -> str:
        return f"{self.case}: {what}\n" + "\n".join(self.told)


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
