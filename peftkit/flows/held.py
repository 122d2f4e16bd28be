"""The held-out rows of a run that its exports are compared and scored on."""

from __future__ import annotations

from peftkit.config.run import Run
from peftkit.config.trust import unasked
from peftkit.data.batches import evaluation_batches
from peftkit.data.prepare import Prepared
from peftkit.data.store import Store
from peftkit.engine.world import Alone
from peftkit.evaluation.held import Held
from peftkit.evaluation.reference import reference_values
from peftkit.evaluation.score import Split
from peftkit.flows.job import metrics_of
from peftkit.metrics import Metric
from peftkit.models.load import Base
from peftkit.tasks.base import Batch

ROWS = 16
"""Held-out rows that the export is compared on."""
SCORED = 64
"""Held-out rows that the task's metrics are of, at most."""


def split_of(prepared: Prepared) -> tuple[str, Store]:
    """The rows that an export is compared on: those of validation if there are any, else of test, else of training."""
    found = ((name, prepared.store(name)) for name in ("validation", "test", "train"))
    return next((name, store) for name, store in found if store is not None)


def held_out(run: Run, base: Base, prepared: Prepared) -> list[Batch]:
    _, store = split_of(prepared)
    return [batch for _, batch in evaluation_batches(store, run.task, base.processor, 2, 1, 0, ROWS)]


def held_rows(run: Run, base: Base, prepared: Prepared) -> Held:
    """The rows that the metrics are of, in the split's order. The base is as it was before its first step."""
    name, store = split_of(prepared)

    def batches() -> list[tuple[list[int], Batch]]:
        found = evaluation_batches(store, run.task, base.processor, 4, 1, 0, SCORED)
        return sorted(found, key=lambda pair: min(pair[0]))

    if run.task.reference:
        world = Alone(0, 1, 0, next(base.model.parameters()).device)
        store.join(reference_values(base.model, batches(), len(store), run.task, world))
    metrics = [metric.fit(run.task) for metric in allowed(run)]
    writes = any("generated" in metric.needs for metric in metrics)
    split = Split(store, prepared.rows(name), base.processor)
    return Held(split, batches(), metrics, run.generate if writes else None)


def allowed(run: Run) -> list[Metric]:
    """The run's metrics without scripts that this user has never asked for: the run's folder may be anybody's."""
    strange = "eval.metrics" in unasked(run)
    return [metric for metric in metrics_of(run) if not (strange and metric.name == "evaluate")]
