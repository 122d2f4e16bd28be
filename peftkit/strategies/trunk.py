"""What the strategies share under which the lower layers may be frozen: their activations can be kept on disk."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from peftkit.config.amount import Amount
from peftkit.strategies.base import Strategy

OWN = ("cache_budget", "cache_format")


class CachesTrunk(Strategy):
    """A strategy that can leave the lower layers frozen."""

    cache_trunk: bool = False
    """Run the frozen lower layers once for each row, without their dropout, and keep what comes out of them on disk (under
    --data.cache): later passes, of this run and of others over the same rows, begin at the first layer that trains."""
    cache_budget: Amount = Amount.read("10GB")
    """The most that is kept so, over all processes; rows beyond it run through all layers each time."""
    cache_format: Literal["auto", "fp32", "bf16"] = "auto"
    """Format of what is kept; auto is the run's own, which loses nothing. bf16 takes half of fp32's disk."""

    def conflicts(self, run: Any) -> Iterator[str]:
        yield from super().conflicts(run)
        if not self.cache_trunk:
            for name in OWN:
                if getattr(self, name) != type(self).model_fields[name].default:
                    yield f"--strategy.{name} is of kept activations, and none are kept; add --strategy.cache_trunk"
            return
        kept = "--strategy.cache_trunk keeps what the frozen layers make of a row"
        if run.task.varies:
            yield f"{kept}, and --task {run.task.name} {run.task.varies}; leave it out"
        if run.regularize.neftune:
            yield f"{kept}, and --regularize.neftune adds other noise to it each time; leave out one of them"
        if run.regularize.r_drop:
            yield f"{kept}, and --regularize.r_drop runs each row twice; leave out one of them"
        if why := self.moves_trunk:
            yield f"{kept}, and {why}"

    @property
    def moves_trunk(self) -> str:
        """Why nothing, or not always the same, is frozen below: the end of a sentence; empty where there is no such reason."""
        return ""
