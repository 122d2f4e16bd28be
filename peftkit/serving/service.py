"""What a service has: models by name, the thread that computes, limits and meters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from peftkit.registry import did_you_mean
from peftkit.serving.gate import Limits
from peftkit.serving.meters import Meters
from peftkit.serving.model import Served
from peftkit.serving.problems import AskedError
from peftkit.serving.worker import Worker


@dataclass
class Service:
    """Everything that the routes need."""

    models: Mapping[str, Served]
    worker: Worker
    limits: Limits
    stopping: bool = False
    """Asked to stop: what runs is finished, and a load balancer sends no more."""
    meters: Meters = field(init=False)

    def __post_init__(self) -> None:
        self.meters = Meters(self.worker)

    def find(self, name: str | None, asks: str | None = None) -> Served:
        """The model of this name; without one, the only model that can be `asks`ed so. AskedError if there is none, or several."""
        if name is not None:
            if name in self.models:
                return self.models[name]
            near = did_you_mean(name, self.models)
            raise AskedError(
                f"no model is named {name!r}{near}; there are: {', '.join(self.models)}",
                "model",
                "model_not_found",
                404,
            )
        fitting = [one for one in self.models.values() if asks is None or asks == one.asks] or [*self.models.values()]
        if len(fitting) > 1:
            raise AskedError(f"say which model: {', '.join(one.name for one in fitting)}", "model")
        return fitting[0]

    def card(self, served: Served) -> dict[str, Any]:
        """What is told of a model: OpenAI's fields, and how it is asked."""
        told = {"id": served.name, "object": "model", "created": 0, "owned_by": "peftkit"}
        own = {"task": served.task.name, "asks": served.asks, "context": served.context, "columns": served.reads}
        return {**told, **own, "answers_rows": served.rows is not None}


def service_of(models: Sequence[Served], limits: Limits, max_queue: int) -> Service:
    """A service of these models, its thread not yet started."""
    lanes: list[Any] = [lane for one in models for lane in (one.text_lane, one.row_lane) if lane is not None]
    return Service({one.name: one for one in models}, Worker(lanes, max_queue), limits)
