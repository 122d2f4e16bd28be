"""What `peftkit export` is asked to make of a run, and by which limits it is judged."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, PositiveFloat, SerializeAsAny

from peftkit.config.section import Section
from peftkit.exporters import Exporter

Whole = Annotated[float, Field(ge=0, le=1)]
"""A share up to all of it."""


class Bounds(Section):
    """Limits other than those that follow from the exporter and the format of its weights. They are kept in the certificate."""

    max_relative_error: PositiveFloat | None = None
    """Most that the logits may differ by, in parts of their size; left out: what the exporter or the weights' format costs."""
    max_kl: PositiveFloat | None = None
    """Largest mean KL divergence from the trained model, in nats."""
    min_same_text: Whole | None = None
    """Least share of held-out prompts that must be continued with the same words."""


class Wanted(Bounds):
    """An exporter and its limits, as flags: `--to merged --to.dtype bfloat16 --max_kl 0.01`."""

    to: SerializeAsAny[Exporter] = Field(default_factory=lambda: Exporter.model_validate("merged"))
    """What is deployed: adapter, merged, ...; `peftkit choices exporter` lists them."""

    @property
    def bounds(self) -> Bounds:
        return Bounds.model_validate({name: getattr(self, name) for name in Bounds.model_fields})
