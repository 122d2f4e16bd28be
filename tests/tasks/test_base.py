"""What all tasks have in common with the rest of the run."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from transformers import AutoConfig

from peftkit.config.sections import Data, Eval, Model
from peftkit.metrics import Metric
from peftkit.models.processor import load_processor
from peftkit.tasks import Task
from peftkit.tasks.base import EMBEDDED
from tests.cases import CASES
from tests.tiny import save_tiny

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


@pytest.mark.parametrize("case", CASES)
def test_what_is_learnt_need_not_stand_in_a_row_to_be_predicted(case, tmp_path):
    what = CASES[case]
    source = str(save_tiny(tmp_path / "base", what.families[0], **what.model))
    rows = what.rows(tmp_path)
    task = Task.model_validate({"name": case, **what.settings}).bind(AutoConfig.from_pretrained(source)).fit(rows)
    processor = load_processor(Model(path=source), source, task.reads)
    for row in rows[:3]:
        blind = task.unlabelled({name: value for name, value in row.items() if name not in task.given})
        assert task.windows(blind, processor, 128, None)
