from __future__ import annotations

import pytest
import torch

from peftkit.tasks.reward import Reward
from tests.tasks.test_preference import LONG, ROW
from tests.tiny import tiny, tokenizer


def test_the_loss_is_that_of_bradley_and_terry_on_each_pair_alone() -> None:
    model = tiny("llama", head="sequence_classification", num_labels=1)
    task = Reward(centre=0.01)
    rows = [ROW, {**LONG, "margin": 0.5}]
    features = [task.encode(row, tokenizer(), 128) for row in rows]
    batch = task.collate(features, tokenizer())
    outputs = model(**task.inputs(batch))
    expected = 0.0
    for row, margin in zip(features, (0, 0.5), strict=True):
        chosen, rejected = (
            float(model(input_ids=torch.tensor([row[f"{side}_input_ids"]])).logits.detach())
            for side in ("chosen", "rejected")
        )
        expected += float(torch.tensor(1 + torch.tensor(-(chosen - rejected - margin)).exp()).log())
        expected += 0.01 * (chosen + rejected) ** 2
    assert float(task.loss(outputs, batch).detach()) == pytest.approx(expected, rel=1e-5)
    records = task.score(outputs, batch)
    assert sum(record["loss"] for record in records) == pytest.approx(expected, rel=1e-5)
    assert [record["margin"] for record in records] == [
        record["chosen_reward"] - record["rejected_reward"] for record in records
    ]


def test_a_blank_batch_counts_nothing() -> None:
    task, model = Reward(), tiny("llama", head="sequence_classification", num_labels=1)
    batch = task.blank(task.collate([task.encode(ROW, tokenizer(), 64)], tokenizer()))
    loss = task.loss(model(**task.inputs(batch)), batch)
    loss.backward()
    assert task.targets(batch) == 0
    assert float(loss.detach()) == 0
    assert model.score.weight.grad is not None
