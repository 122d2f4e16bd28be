"""Libraries' chatter goes to a log file, down to what C++ and child processes print; ours stays on the terminal.

with chatter_to(folder.log(process=0), verbose=False):
    ...                       # print(), logging, warnings, tqdm and C++'s cout land in logs/process-0.log
    terminal().write("hello") # this is seen

What Python writes is without the environment's secrets at once; what C and child processes write, when the log is closed.
"""

from __future__ import annotations

import ctypes
import faulthandler
import io
import logging
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TextIO

from peftkit.redact import redact, redact_file

KEEP_THEIR_RECORDS = ("DeepSpeed", "transformers", "torch", "datasets", "peft", "accelerate")
"""Loggers that may not hand their records on to the root."""

_terminals: list[tuple[TextIO, TextIO]] = []
"""What stdout and stderr were when the innermost `chatter_to` began."""
_logged: list[tuple[BaseException, Path]] = []
"""The last error that passed through a `chatter_to`, and the log that has its traceback."""


def terminal() -> TextIO:
    """Where the user reads, also inside `chatter_to`."""
    return _terminals[-1][0] if _terminals else sys.stdout


def speak_at_once(text: str) -> None:
    """A line to the user from a thread or a signal's handler, which may be interrupting any other output."""
    with suppress(OSError, ValueError):
        os.write(terminal().fileno(), f"{text}\n".encode())


def is_active() -> bool:
    """Whether libraries are being kept off the terminal."""
    return bool(_terminals)


def log_of(problem: BaseException) -> Path | None:
    """The log file that has this error's traceback."""
    return next((log for known, log in _logged if known is problem), None)


@contextmanager
def chatter_to(log_path: Path | None, verbose: bool = False) -> Iterator[None]:
    """Send everything that is not written to `terminal()` to `log_path` (None: nowhere); `verbose` changes nothing at all.

    Errors that libraries log are shown on stderr as well; a crash in C++ still prints Python's traceback there.
    """
    if verbose:
        yield
        return
    if log_path:
        log_path.parent.mkdir(parents=True, exist_ok=True)
        redact_file(log_path)  # of an attempt that was killed
    with ExitStack() as undo:
        if log_path:
            undo.callback(redact_file, log_path)  # when it is closed: what did not come through Python
        log = undo.enter_context(_Redacted(Path(log_path or os.devnull)))
        shown = _divert_streams(log, undo)
        _divert_logging(log, shown, undo)
        try:
            yield
        except BaseException as problem:
            traceback.print_exception(problem, file=log)
            if log_path:
                _logged[:] = [(problem, log_path)]
            raise


class _Redacted(io.TextIOWrapper):
    """A log to which secrets are not written, and which a full disk makes incomplete: what libraries say is worth no end."""

    def __init__(self, path: Path) -> None:
        super().__init__(path.open("ab"), encoding="utf-8", errors="replace", line_buffering=True)

    def write(self, text: str) -> int:
        with suppress(OSError):
            super().write(redact(text))
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            super().flush()

    def close(self) -> None:
        with suppress(OSError):
            super().close()


def _divert_streams(log: TextIO, undo: ExitStack) -> tuple[TextIO, TextIO]:
    """Let `log` stand for stdout and stderr, as objects and as file descriptors; returns what they were."""
    old = sys.stdout, sys.stderr
    _flush(*old)
    shown = _behind(old[0], 1, log, undo), _behind(old[1], 2, log, undo)
    _terminals.append(shown)
    undo.callback(_terminals.pop)
    sys.stdout = sys.stderr = log
    undo.callback(_restore_streams, old)
    if not faulthandler.is_enabled() and _descriptor(shown[1]) is not None:
        faulthandler.enable(file=shown[1])
        undo.callback(faulthandler.disable)
    return shown


def _restore_streams(old: tuple[TextIO, TextIO]) -> None:
    sys.stdout, sys.stderr = old


def _behind(stream: TextIO, number: int, log: TextIO, undo: ExitStack) -> TextIO:
    """Point file descriptor `number` at the log; returns a stream to where `stream` went."""
    try:
        kept = os.dup(number)
    except OSError:  # closed
        return stream
    undo.callback(os.close, kept)
    os.dup2(log.fileno(), number)
    undo.callback(_point_back, kept, number, stream)
    if _descriptor(stream) != number:
        return stream  # a notebook's, or pytest's: it never went through the descriptor
    shown = open(kept, "w", buffering=1, encoding=stream.encoding, errors="replace", closefd=False)  # noqa: SIM115
    undo.callback(shown.close)
    return shown


def _point_back(kept: int, number: int, stream: TextIO) -> None:
    _flush(stream)
    os.dup2(kept, number)


def _flush(*streams: TextIO) -> None:
    """Write out what is buffered, also by C's stdio, so that it lands where it was meant to."""
    for stream in streams:
        stream.flush()
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).fflush(None)


def _descriptor(stream: TextIO) -> int | None:
    try:
        return stream.fileno()
    except (OSError, ValueError, AttributeError, io.UnsupportedOperation):
        return None


def _divert_logging(log: TextIO, shown: tuple[TextIO, TextIO], undo: ExitStack) -> None:
    """Handlers that already hold the old streams write to the log; errors are shown."""
    held = {id(stream): stream for stream in (*shown, *_originals())}
    for handler in _stream_handlers():
        if id(handler.stream) in held:
            undo.callback(handler.setStream, handler.stream)
            handler.setStream(log)
    undo.callback(_release, log)
    to_log = logging.StreamHandler(log)
    to_log.setLevel(logging.WARNING)
    to_log.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    _add(to_log, logging.getLogger(), undo)
    errors = _Errors(shown[1])
    for name in (None, *KEEP_THEIR_RECORDS):
        _add(errors, logging.getLogger(name), undo)


def _add(handler: logging.Handler, logger: logging.Logger, undo: ExitStack) -> None:
    logger.addHandler(handler)
    undo.callback(logger.removeHandler, handler)


def _originals() -> list[TextIO]:
    return [stream for stream in (sys.__stdout__, sys.__stderr__) if stream]


def _stream_handlers() -> list[logging.StreamHandler[TextIO]]:
    loggers = [logging.getLogger(), *logging.root.manager.loggerDict.values()]
    handlers = [handler for logger in loggers if isinstance(logger, logging.Logger) for handler in logger.handlers]
    # Some have a stream that follows sys.stderr by itself, and cannot be set (transformers' own).
    return [
        one
        for one in handlers
        if isinstance(one, logging.StreamHandler) and not isinstance(one, logging.FileHandler) and "stream" in vars(one)
    ]


def _release(log: TextIO) -> None:
    """Handlers that libraries made meanwhile hold the log, which is about to be closed."""
    for handler in _stream_handlers():
        vars(handler).pop("flush", None)  # transformers' handler keeps the `flush` of the stderr that it met
        if handler.stream is log:
            handler.setStream(sys.__stderr__ or sys.stderr)


class _Errors(logging.Handler):
    """Shows errors that libraries log, each once."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(logging.ERROR)
        self._stream = stream
        self._last: logging.LogRecord | None = None

    def emit(self, record: logging.LogRecord) -> None:
        if record is not self._last:
            self._stream.write(redact(f"{record.name}: {record.getMessage()}\n"))
        self._last = record
