"""What all tasks have in common with the rest of the run."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from peftkit.config.sections import Data, Eval
from peftkit.metrics import Metric
from peftkit.tasks import Task
from peftkit.tasks.base import EMBEDDED

EVERY = [Task.model_validate(name) for name in Task.registry]


@pytest.mark.parametrize("task", EVERY, ids=lambda task: task.name)
def test_default_metrics_and_needed_columns_exist(task):
    assert set(task.metrics) <= set(Metric.registry)
    assert task.needs
    assert {column for names in task.needs for column in names} <= set(task.columns)


@pytest.mark.parametrize("task", EVERY, ids=lambda task: task.name)
def test_a_column_that_the_task_does_not_read_is_a_clash(task):
    data = Data(train="x.csv", columns={"nonsense": "a", next(iter(task.columns)): "b"})
    run = SimpleNamespace(data=data, eval=Eval())
    (problem,) = task.conflicts(run)
    assert problem.startswith(f"--data.columns names 'nonsense', which --task {task.name} does not read")


@pytest.mark.parametrize("task", EVERY, ids=lambda task: task.name)
def test_without_rows_there_are_the_embedded_ones_for_tasks_that_read_them(task):
    problems = list(task.conflicts(SimpleNamespace(data=Data(), eval=Eval())))
    reads_them = any(set(needed) <= set(EMBEDDED) for needed in task.needs)
    assert bool(problems) != reads_them
    assert all("--data.train" in problem and task.name in problem for problem in problems)
