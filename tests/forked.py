"""`peftkit` commands without the seconds of importing: a server imports once, and forks a process for each command.

    with Server() as server:
        world = server.start(["train", ...], processes=2, log=folder)   # as `srun python` starts them: no launcher looks after them
        os.kill(world[1].pid, signal.SIGTERM)
        assert [one.wait() for one in world] == [75, 75]

`python -m tests.forked` is the server. It has no threads and no process group, so that a fork of it is as a new process is.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.launch import ROOT, environment

PRELOAD = (
    "torch", "transformers", "deepspeed", "peft", "safetensors.torch", "sklearn.metrics", "datasets",
    "transformers.models.llama.modeling_llama", "transformers.models.bert.modeling_bert", "transformers.integrations",
    "deepspeed.runtime.zero.stage3", "deepspeed.runtime.zero.stage_1_and_2",
    "peftkit.flows.train", "peftkit.flows.export", "peftkit.strategies.lora", "peftkit.tasks", "peftkit.cli.train",
)  # fmt: skip


@dataclass
class Process:
    """A forked command."""

    pid: int
    log: Path
    server: Server

    def wait(self, timeout: float = 120) -> int:
        """Its exit code; minus the signal's number if one ended it. TimeoutError with what it said, if it goes on."""
        until = time.monotonic() + timeout
        while self.pid not in self.server.ended:
            if not self.server.read(until - time.monotonic()):
                raise TimeoutError(f"process {self.pid} goes on after {timeout} s:\n{self.said()[-4000:]}")
        return self.server.ended[self.pid]

    def ended(self, seconds: float) -> bool:
        """Whether it has, waiting at most so long for it."""
        until = time.monotonic() + seconds
        while self.pid not in self.server.ended and self.server.read(until - time.monotonic()):
            pass
        return self.pid in self.server.ended

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal, if it has not ended."""
        if self.pid not in self.server.ended:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)


class Server:
    """The client's end. Whatever was forked and still runs is ended with it."""

    def __enter__(self) -> Server:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.forked"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, env=environment(TOKENIZERS_PARALLELISM="false"),
        )  # fmt: skip
        self.ended: dict[int, int] = {}
        self._running: list[int] = []
        self._started: dict[str, int] = {}
        self._buffer = b""
        assert self._process.stdout
        os.set_blocking(self._process.stdout.fileno(), False)
        return self

    def __exit__(self, *problem: object) -> None:
        for pid in self._running:
            if pid not in self.ended:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(timeout=60)

    def start(self, words: Sequence[str | Path], log: Path, processes: int = 1, **env: str) -> list[Process]:
        """`peftkit WORDS` as a world of so many processes on this machine; each speaks into a file below `log`."""
        log.mkdir(parents=True, exist_ok=True)
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(processes)}
        return [
            self._fork(words, log / f"{len(self._running)}.txt", index, {**shared, **env}) for index in range(processes)
        ]

    def _fork(self, words: Sequence[str | Path], log: Path, index: int, env: dict[str, str]) -> Process:
        name = str(log)
        own = {**env, "RANK": str(index), "LOCAL_RANK": str(index)} if env["WORLD_SIZE"] != "1" else env
        assert self._process.stdin
        self._process.stdin.write(
            json.dumps({"name": name, "words": list(map(str, words)), "env": own}).encode() + b"\n"
        )
        self._process.stdin.flush()
        until = time.monotonic() + 120
        while name not in self._started:
            assert self.read(until - time.monotonic()), "the fork server does not answer"
        pid = self._started.pop(name)
        self._running.append(pid)
        return Process(pid, log, self)

    def read(self, seconds: float) -> bool:
        """Take in what the server says, waiting at most so long; whether it said anything."""
        import select

        assert self._process.stdout
        ready, _, _ = select.select([self._process.stdout], [], [], max(0.0, seconds))
        if not ready:
            return False
        self._buffer += self._process.stdout.read() or b""
        *lines, self._buffer = self._buffer.split(b"\n")
        for line in lines:
            said = json.loads(line)
            if "name" in said:
                self._started[said["name"]] = said["pid"]
            else:
                self.ended[said["pid"]] = said["code"]
        assert lines or self._process.poll() is None, "the fork server has ended"
        return True


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def serve() -> None:
    """Read commands, a JSON object a line; tell of each process when it starts and when it ends."""
    import importlib
    import select

    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    for name in PRELOAD:
        importlib.import_module(name)
    os.set_blocking(0, False)
    children: set[int] = set()
    buffer = b""
    while True:
        ready, _, _ = select.select([0], [], [], 0.02 if children else None)
        if ready:
            content = os.read(0, 1 << 16)
            if not content:
                return
            *lines, buffer = (buffer + content).split(b"\n")
            for line in lines:
                asked = json.loads(line)
                pid = os.fork()
                if not pid:
                    become(asked)
                children.add(pid)
                out.write(json.dumps({"name": asked["name"], "pid": pid}) + "\n")
        for pid in list(children):
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                children.discard(pid)
                out.write(json.dumps({"pid": pid, "code": os.waitstatus_to_exitcode(status)}) + "\n")


def become(asked: dict[str, Any]) -> None:
    """In the forked process: the command, as its own program."""
    os.setsid()
    log = os.open(asked["name"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    os.environ.update(asked["env"])
    if hook := os.environ.get("PEFTKIT_TEST_HOOK"):  # a test's own code in this process: MODULE:FUNCTION
        import importlib

        module, _, function = hook.partition(":")
        getattr(importlib.import_module(module), function)()
    from peftkit.cli.main import main

    code = 1
    try:
        code = main(asked["words"])
    except SystemExit as left:
        code = int(left.code or 0)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve()
