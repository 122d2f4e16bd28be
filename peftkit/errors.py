"""The error family: what a user can mend says so in its exit code.

PeftkitError          1  the run failed
|- ConfigError        2  settings: unknown, misspelt, out of range or clashing
|- DataError          2  rows, columns, labels, files of data
|- ModelError         2  a base model that cannot be found, read or adapted
|- NonFiniteError     1  losses or gradients that are no numbers any more
|- OutOfMemoryError   1  less memory than the training needs
|- CheckpointError    1  a checkpoint that cannot be written, verified or resumed
|  |- DiskError       1  no room for it, or a folder that cannot be written
|- ExportError        1  an export that is not what was trained
|- PeerError          1  another process of the run has ended or hangs
|- StoppedError      75  asked to stop: what was reached is saved, and the run can go on
"""

from __future__ import annotations

from collections.abc import Iterable


class PeftkitError(Exception):
    """Anything that peftkit itself reports; the command line prints the message alone, without a traceback."""

    exit_code = 1
    kind = "code"
    """What is to blame, in a word: see `status.Kind`."""


class ConfigError(PeftkitError):
    """One or more settings are wrong; every one of them is named."""

    exit_code = 2
    kind = "settings"

    def __init__(self, problems: str | Iterable[str]) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class DataError(PeftkitError):
    """Data that cannot be trained on; the message names the file and the row."""

    exit_code = 2
    kind = "data"


class ModelError(PeftkitError):
    """A base model that cannot be found, read, or adapted as asked."""

    exit_code = 2
    kind = "model"


class NonFiniteError(PeftkitError):
    """Losses, gradients or weights that are NaN or infinite; the message names the step, the rows and the way out."""

    kind = "nonfinite"


class OutOfMemoryError(PeftkitError):
    """The device or the machine has less memory than the training needs; the message says what holds it."""

    kind = "memory"


class CheckpointError(PeftkitError):
    """A checkpoint that cannot be written, does not verify, or belongs to another run."""

    kind = "checkpoint"


class DiskError(CheckpointError):
    """A disk that is full or may not be written; the message says what needs room, how much, and the way out."""

    kind = "disk"


class ExportError(PeftkitError):
    """An export that differs from the model that was trained."""

    kind = "export"


class PeerError(PeftkitError):
    """Another process of the run has ended, or hangs: this one is well, and cannot go on alone."""

    kind = "peer"

    def __init__(self, text: str, quiet: bool = False) -> None:
        self.quiet = quiet
        """Another process tells it already."""
        super().__init__(text)


class StoppedError(PeftkitError):
    """The run was asked to stop (a signal, a stop file, a deadline) and did so; nothing is lost."""

    exit_code = 75  # sysexits.h, EX_TEMPFAIL: try again later
    kind = "stopped"
