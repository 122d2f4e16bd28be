"""The summed loss of the next token: transformers' own mean times its count, whatever shares the batch."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close

from peftkit.config.run import Run
from peftkit.tasks import CausalLM, Chat
from peftkit.tasks.base import IGNORED, RowError
from tests.tiny import EOS, tiny, tokenizer

TEXTS = ["The fox.", "What is the capital of France? Paris, on the Seine.", "No."]
ROWS = [{"prompt": text, "response": text[::-1]} for text in TEXTS]


def encoded(task):
    rows = ROWS if isinstance(task, Chat) else [{"text": text} for text in TEXTS]
    return [task.encode(row, tokenizer(), 64) for row in rows]


@pytest.mark.parametrize("task", [CausalLM(), Chat()], ids=["causal_lm", "chat"])
def test_loss_is_transformers_mean_times_the_targets(task):
    model, batch = tiny("llama"), task.collate(encoded(task), tokenizer())
    mean = model(**batch).loss
    assert_close(task.loss(model(**task.inputs(batch)), batch), mean * task.targets(batch))
    assert task.targets(batch) == sum(label != IGNORED for row in encoded(task) for label in row["labels"])


@pytest.mark.parametrize("task", [CausalLM(), Chat()], ids=["causal_lm", "chat"])
def test_losses_and_gradients_of_rows_add_up(task):
    model = tiny("llama")
    together = task.collate(encoded(task), tokenizer())
    whole = task.loss(model(**task.inputs(together)), together)
    expected = torch.autograd.grad(whole, list(model.parameters()))
    alone = [task.collate([row], tokenizer()) for row in encoded(task)]
    parts = sum(task.loss(model(**task.inputs(batch)), batch) for batch in alone)
    assert_close(parts, whole)
    assert_close(torch.autograd.grad(parts, list(model.parameters())), expected, rtol=1e-4, atol=1e-5)


def test_a_record_is_the_rows_own_loss_and_does_not_see_its_neighbours():
    task, model = CausalLM(), tiny("llama")
    batch = task.collate(encoded(task), tokenizer())
    outputs = model(**task.inputs(batch))
    records = task.score(outputs, batch)
    assert sum(record["targets"] for record in records) == task.targets(batch)
    assert_close(sum(record["loss"] for record in records), task.loss(outputs, batch).item())
    noise = torch.randn_like(outputs.logits)
    noise[1] = outputs.logits[1]
    assert task.score(SimpleNamespace(logits=noise), batch)[1] == records[1]


def test_correct_counts_the_targets_that_were_likeliest():
    task = CausalLM()
    batch = task.collate([{"input_ids": [5, 6, 7, 8], "labels": [IGNORED, 6, IGNORED, 8]}], tokenizer())
    logits = torch.zeros(1, 4, 320)
    logits[0, 0, 6] = logits[0, 1, 7] = logits[0, 2, 9] = 5.0
    (record,) = task.score(SimpleNamespace(logits=logits), batch)
    assert (record["correct"], record["targets"]) == (1, 2)


def test_a_blank_batch_has_no_targets_and_a_gradient_of_zero():
    task, model = CausalLM(), tiny("llama")
    blank = task.blank(task.collate(encoded(task)[:1], tokenizer()))
    loss = task.loss(model(**task.inputs(blank)), blank)
    loss.backward()
    assert (task.targets(blank), loss.item()) == (0, 0.0)
    assert all(parameter.grad.abs().sum() == 0 for parameter in model.parameters())


def test_half_precision_logits_are_summed_in_fp32():
    task = CausalLM()
    batch = task.collate(encoded(task), tokenizer())
    logits = torch.randn(*batch["labels"].shape, 320).bfloat16()
    loss = task.loss(SimpleNamespace(logits=logits), batch)
    assert loss.dtype == torch.float32
    assert_close(loss, task.loss(SimpleNamespace(logits=logits.float()), batch))


def test_text_is_learnt_from_its_second_token_to_its_end_token():
    processor = tokenizer()
    features = CausalLM().encode({"text": "The fox."}, processor, 64)
    ids = processor("The fox.")["input_ids"]
    assert features == {"input_ids": [*ids, EOS], "labels": [IGNORED, *ids[1:], EOS]}


def test_a_long_text_is_cut_and_has_no_end():
    features = CausalLM().encode({"text": "The fox. " * 20}, tokenizer(), 8)
    assert len(features["input_ids"]) == 8
    assert EOS not in features["labels"]


def test_cut_on_the_left_a_text_keeps_its_end():
    processor = tokenizer()
    processor.truncation_side = "left"
    whole = [*processor("The fox. " * 20)["input_ids"], EOS]
    assert CausalLM().encode({"text": "The fox. " * 20}, processor, 8)["input_ids"] == whole[-8:]


def test_plain_text_has_no_prompts_so_nothing_is_written():
    batch = CausalLM().collate(encoded(CausalLM()), tokenizer())
    assert CausalLM().prompts(batch, tokenizer()) is None
    run = Run(task="causal_lm", data="x.jsonl", eval={"metrics": ["bleu"]})
    assert [problem for problem in run.problems() if "bleu" in problem and "`generated`" in problem]
    assert not [problem for problem in Run(task="chat", eval={"metrics": ["bleu"]}).problems() if "bleu" in problem]


@pytest.mark.parametrize(
    ("row", "message"),
    [({}, "no 'text'"), ({"text": ""}, "no 'text'"), ({"text": 3}, "'text' is no text but int")],
)
def test_a_row_without_text_says_so(row, message):
    with pytest.raises(RowError, match=message):
        CausalLM().encode(row, tokenizer(), 64)


def test_one_token_alone_predicts_nothing():
    with pytest.raises(RowError, match="no target"):
        CausalLM().encode({"text": "The fox"}, tokenizer(), 1)
