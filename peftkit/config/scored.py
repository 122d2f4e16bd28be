"""Which metrics a task can feed: a metric reads keys of the records that a task makes of scored rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from peftkit.metrics import Metric
from peftkit.tasks import Task

ALWAYS = ("loss", "targets")


def unfed(metrics: Iterable[Metric], task: Task) -> Iterator[str]:
    """What is wrong with metrics that cannot be computed of this task's records."""
    for metric in metrics:
        if not feeds(task, metric.fit(task)):
            word = getattr(metric, "path", metric.name)
            yield (
                f"--eval.metrics {word} scores {_read(metric.fit(task))}, which --task {task.name} has not here;"
                f" it goes with: {', '.join(goes_with(task))}"
            )


def feeds(task: Task, metric: Metric) -> bool:
    """Whether the task's records have what the metric reads; of one that has not met its rows, whether they may have it."""
    alike = "label" not in metric.needs or set(task.labels_are) & set(metric.labels_are)
    return bool(alike) and set(metric.needs) <= kept(task)


def kept(task: Task) -> set[str]:
    """The keys of the task's records: what its default metrics read, and what it says."""
    defaults = {key for name in task.default_metrics() for key in Metric.registry[name].needs}
    return {*ALWAYS, *task.keeps, *defaults}


def goes_with(task: Task) -> list[str]:
    """The names of the metrics that it can feed."""
    # One that is told which keys to read has no instance without them.
    plain = [name for name in Metric.registry if isinstance(Metric.registry[name].needs, tuple)]
    return [name for name in plain if feeds(task, Metric.registry[name]())]


def _read(metric: Metric) -> str:
    """`label` (a name or names) and `prediction`."""
    keys = [f"`{key}`" for key in metric.needs if key not in ALWAYS]
    kind = f" ({' or '.join(metric.labels_are)})"
    return " and ".join(key + kind if key == "`label`" else key for key in keys)
