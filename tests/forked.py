"""`peftkit` commands without the seconds of importing: a server imports once, and forks a process for each command.

    with Server() as server:
        world = server.start(["train", ...], processes=2, log=folder)   # as `srun python` starts them: no launcher looks after them
        os.kill(world[1].pid, signal.SIGTERM)
        assert [one.wait() for one in world] == [75, 75]

`python -m tests.forked` is the server. It has no threads and no process group, so that a fork of it is as a new process is.
The fresh processes that a forked command wants for its exports are forked from it as well: they have the imports, and nothing
of what was trained.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TextIO

from tests.launch import ROOT, environment

DESK = "PEFTKIT_TEST_FORKS"
"""The variable that says at which socket the server takes requests for fresh processes."""
PRELOAD = (
    "torch", "transformers", "deepspeed", "peft", "safetensors.torch", "sklearn.metrics", "datasets",
    "transformers.models.llama.modeling_llama", "transformers.models.bert.modeling_bert", "transformers.integrations",
    "deepspeed.runtime.zero.stage3", "deepspeed.runtime.zero.stage_1_and_2",
    "peftkit.flows.train", "peftkit.flows.export", "peftkit.strategies.lora", "peftkit.tasks", "peftkit.cli.train",
    "peftkit.evaluation.fresh",
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
        self._folder = tempfile.TemporaryDirectory(prefix="peftkit-forks-", dir="/tmp")  # a socket's path has 108 bytes
        self.desk = f"{self._folder.name}/desk"
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.forked"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT,
            env=environment(TOKENIZERS_PARALLELISM="false", **{DESK: self.desk}),
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
        self._folder.cleanup()

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


def run_forked(desk: str, words: Sequence[str], env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """`PYTHON -m MODULE ...` in a fork of the server at `desk`, instead of subprocess.run; what it says is all in stderr."""
    with socket.socket(socket.AF_UNIX) as asking, tempfile.NamedTemporaryFile("w+", prefix="peftkit-fork-") as log:
        until = time.monotonic() + 120
        while asking.connect_ex(desk):
            assert time.monotonic() < until, "the fork server does not answer"
            time.sleep(0.02)  # it imports first
        asked = {"name": log.name, "module": words[2:], "env": {**env, DESK: desk}}
        asking.sendall(json.dumps(asked).encode() + b"\n")
        with asking.makefile() as answers:
            code = int(answers.readline())
        return subprocess.CompletedProcess(list(words), code, "", log.read())


def in_place_of_subprocess(desk: Callable[[], str]) -> Any:
    """For peftkit.evaluation.fresh, whose processes are forked then."""
    return SimpleNamespace(run=lambda words, env, **_: run_forked(desk(), words, env))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def serve() -> None:
    """Read commands, a JSON object a line; tell of each process when it starts and when it ends."""
    import gc
    import importlib
    import select

    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    for name in PRELOAD:
        importlib.import_module(name)
    gc.freeze()  # DeepSpeed collects garbage, in every fork among all that was imported
    os.set_blocking(0, False)
    desk = socket.socket(socket.AF_UNIX)
    desk.bind(os.environ[DESK])
    desk.listen(64)
    children: dict[int, socket.socket | None] = {}
    buffer = b""
    while True:
        ready, _, _ = select.select([0, desk], [], [], 0.02 if children else None)
        if desk in ready:
            asking, _ = desk.accept()
            children[fork(json.loads(asking.makefile().readline()))] = asking
        if 0 in ready:
            content = os.read(0, 1 << 16)
            if not content:
                return
            *lines, buffer = (buffer + content).split(b"\n")
            for line in lines:
                asked = json.loads(line)
                children[pid := fork(asked)] = None
                out.write(json.dumps({"name": asked["name"], "pid": pid}) + "\n")
        tell_the_ended(children, out)


def fork(asked: dict[str, Any]) -> int:
    """The number of the process that becomes what is asked for."""
    pid = os.fork()
    if not pid:
        become(asked)
    return pid


def tell_the_ended(children: dict[int, socket.socket | None], out: TextIO) -> None:
    """The exit codes of those that have ended, each to whom asked for it."""
    for pid, asking in list(children.items()):
        found, status = os.waitpid(pid, os.WNOHANG)
        if not found:
            continue
        del children[pid]
        code = os.waitstatus_to_exitcode(status)
        if asking is None:
            out.write(json.dumps({"pid": pid, "code": code}) + "\n")
        else:
            with suppress(BrokenPipeError), asking:  # a training that was killed waits no longer
                asking.sendall(f"{code}\n".encode())


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
    if "module" in asked:
        os.environ.clear()
    os.environ.update(asked["env"])
    code = 1
    try:
        code = run_module(asked["module"]) if "module" in asked else run_command(asked["words"])
    except SystemExit as left:
        code = int(left.code or 0)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def run_module(words: Sequence[str]) -> int:
    """As `python -m MODULE ...` does."""
    sys.argv = list(words)
    runpy.run_module(words[0], run_name="__main__", alter_sys=True)
    return 0


def run_command(words: Sequence[str]) -> int:
    """As `peftkit ...` does; what it has opened in fresh processes is opened in forks."""
    import importlib

    from peftkit.cli.main import main
    from peftkit.evaluation import fresh

    if hook := os.environ.get("PEFTKIT_TEST_HOOK"):  # a test's own code in this process: MODULE:FUNCTION
        module, _, function = hook.partition(":")
        getattr(importlib.import_module(module), function)()
    fresh.subprocess = in_place_of_subprocess(lambda: os.environ[DESK])
    return main(words)


if __name__ == "__main__":
    serve()
