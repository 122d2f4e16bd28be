"""What everything that keeps a run's numbers answers."""

from __future__ import annotations

from typing import Any, Protocol


class Log(Protocol):
    """A place for rows: a file, a terminal, a service."""

    def write(self, row: dict[str, Any]) -> None:
        """Keep one row: a training step (`step`, `loss`, ...) or an evaluation (`step`, `split`, ...)."""

    def close(self) -> None:
        """Write what is left, and let go."""
