"""One training a folder: the first process of a run holds RUN/lock until it ends, however it ends."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from peftkit.engine.world import World
from peftkit.errors import ConfigError
from peftkit.run_folder import RunFolder
from peftkit.tracking.quiet import speak_at_once

HERE, ELSEWHERE = 30.0, 180.0
"""Seconds in which who holds it may let go: an attempt that is being stopped; a host that is gone, whose locks a server keeps for
a while (NFS 4: 90 s)."""
TAKEN = (errno.EACCES, errno.EAGAIN)


@contextmanager
def sole_writer(folder: RunFolder, world: World) -> Iterator[None]:
    """Raises ConfigError, on every process, while another training writes into the folder."""
    file, problem = _take(folder.lock) if world.first else (-1, None)
    try:
        if problem := world.share(problem):
            raise ConfigError(problem)
        yield
    finally:
        if file >= 0:
            os.close(file)


def _take(path: Path) -> tuple[int, str | None]:
    """The file that is held, -1 where it cannot be (not every file system has locks, or room); else why another holds it."""
    begun, waits = time.monotonic(), False
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)  # a link's file is somebody else's
        except OSError:  # what is wrong there is told where something has to be written
            return -1, None
        try:
            # POSIX's: a child that was forked does not hold it on, and over NFS it holds between hosts.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as problem:
            who = Holder.of(file) if problem.errno in TAKEN else None
            os.close(file)
            if who is None:
                return -1, None
        else:
            with suppress(OSError):
                os.truncate(file, 0)
                os.write(file, f"{os.getpid()} {socket.gethostname()}\n".encode())
            return file, None
        patience = HERE if who.host == socket.gethostname() else ELSEWHERE
        if time.monotonic() - begun >= patience:
            return -1, who.words(path)
        if not waits:
            waits = True
            speak_at_once(f"{path.parent} is being written by {who}: waiting up to {patience:.0f} s for its end")
        time.sleep(0.2)


@dataclass(frozen=True)
class Holder:
    """Who holds a folder, as its lock says."""

    process: str
    host: str

    @classmethod
    def of(cls, file: int) -> Holder:
        process, _, host = os.pread(file, 300, 0).decode(errors="replace").strip().partition(" ")
        return cls(process, host)

    def __str__(self) -> str:
        return f"process {self.process} on {self.host}" if self.host else "another training"

    def words(self, path: Path) -> str:
        """The error."""
        return (
            f"--out {path.parent} is being written by {self}; wait for its end, ask it to stop (touch {path.parent}/stop),"
            f" or name another folder. If it is gone for good: rm {path}"
        )
