"""uvicorn around the application: a port of one's own or a free one, and an end that loses nothing."""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from peftkit.errors import ConfigError
from peftkit.serving.service import Service


def bound(host: str, port: int) -> socket.socket:
    """A socket that listens there; port 0 takes a free one. ConfigError if it cannot."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError as problem:
        listening.close()
        said = problem.strerror or str(problem)
        raise ConfigError(f"--host {host} --port {port}: {said}; --port 0 takes a free one") from None
    return listening


def run(application: Any, service: Service, listening: socket.socket, grace: int, ready: Callable[[], None]) -> None:
    """Serve until SIGTERM or SIGINT; what runs then has `grace` seconds to end. `ready` is called when requests are taken."""
    settings = uvicorn.Config(
        application,
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=grace,
        ws="none",
    )
    _Server(settings, service, ready).run(sockets=[listening])


class _Server(uvicorn.Server):
    """Ends well when it is asked to end."""

    def __init__(self, settings: uvicorn.Config, service: Service, ready: Callable[[], None]) -> None:
        super().__init__(settings)
        self._service, self._ready = service, ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take SIGTERM and SIGINT for a wish to end; uvicorn's own would end the process by the signal after it has served."""
        if threading.current_thread() is not threading.main_thread():  # signals are not for it
            yield
            return
        loop = asyncio.get_running_loop()
        asked = (signal.SIGTERM, signal.SIGINT)
        for number in asked:
            loop.add_signal_handler(number, self._end)
        try:
            yield
        finally:
            for number in asked:
                loop.remove_signal_handler(number)

    def _end(self) -> None:
        # Asked a second time, it waits for nothing.
        self.force_exit = self.should_exit
        self.should_exit = self._service.stopping = True
