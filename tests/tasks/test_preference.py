from __future__ import annotations

from random import Random
from typing import Any

import pytest
import torch
from torch.nn.functional import logsigmoid

from peftkit.config.read import read
from peftkit.errors import ConfigError
from peftkit.tasks.base import IGNORED, LabelError, RowError
from peftkit.tasks.pairs import answers_of, desired
from peftkit.tasks.preference import Preference, log_probabilities
from tests.tiny import tiny, tokenizer

ROW = {"prompt": "What is the capital of France?", "chosen": "Paris, on the river Seine.", "rejected": "A brown fox."}
LONG = {"prompt": "Say it in one sentence. " * 9, "chosen": "It is the sum.", "rejected": "No."}
LOSSES = ("dpo", "ipo", "hinge", "simpo", "orpo", "kto")


def batch_of(task: Preference, rows: list[dict[str, Any]], **reference: list[float]) -> dict[str, torch.Tensor]:
    features = [window for row in rows for window in task.windows(row, tokenizer(), 128, None)]
    batch = task.collate(features, tokenizer())
    return batch | {name: torch.tensor(values) for name, values in reference.items()}


def logps(model: Any, batch: dict[str, torch.Tensor]) -> list[float]:
    """Token by token, one sequence at a time, without padding."""
    found = []
    for ids, labels, mask in zip(batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True):
        size = int(mask.sum())
        tables = model(input_ids=ids[None, :size]).logits[0].log_softmax(-1)
        found.append(sum(float(tables[at - 1, labels[at]]) for at in range(1, size) if labels[at] != IGNORED))
    return found


def test_only_the_answers_are_targets_and_both_have_the_same_prompt() -> None:
    chosen, rejected = answers_of([(ROW["prompt"], ROW["chosen"]), (ROW["prompt"], ROW["rejected"])], tokenizer(), 128)
    for (ids, labels), answer in ((chosen, ROW["chosen"]), (rejected, ROW["rejected"])):
        learnt = tokenizer().decode([label for label in labels if label != IGNORED])
        assert learnt == answer + "</s>"
        assert [token for token, label in zip(ids, labels, strict=True) if label != IGNORED] == [
            label for label in labels if label != IGNORED
        ]
    length = labels_start(chosen)
    assert chosen[0][:length] == rejected[0][:length]
    assert labels_start(rejected) == length


def labels_start(encoded: tuple[list[int], list[int]]) -> int:
    return next(at for at, label in enumerate(encoded[1]) if label != IGNORED)


def test_a_long_prompt_loses_the_same_beginning_in_both() -> None:
    whole = answers_of([(LONG["prompt"], LONG["chosen"]), (LONG["prompt"], LONG["rejected"])], tokenizer(), 1000)
    cut = answers_of([(LONG["prompt"], LONG["chosen"]), (LONG["prompt"], LONG["rejected"])], tokenizer(), 40)
    prompts = [ids[: labels_start((ids, labels))] for ids, labels in cut]
    assert prompts[0] == prompts[1] == whole[0][0][: labels_start(whole[0])][-len(prompts[0]) :]
    assert max(len(ids) for ids, _ in cut) == 40
    assert [label for label in cut[0][1] if label != IGNORED] == [label for label in whole[0][1] if label != IGNORED]


def test_whole_conversations_and_message_lists_are_the_same_pair() -> None:
    question = [{"role": "user", "content": ROW["prompt"]}]
    answers = [[{"role": "assistant", "content": ROW[side]}] for side in ("chosen", "rejected")]
    columns = answers_of([(question, answer) for answer in answers], tokenizer(), 128)
    whole = answers_of([(None, question + answer) for answer in answers], tokenizer(), 128)
    texts = answers_of([(ROW["prompt"], ROW[side]) for side in ("chosen", "rejected")], tokenizer(), 128)
    assert columns == whole == texts


def test_log_probabilities_are_those_of_single_tokens() -> None:
    model, task = tiny("llama"), Preference()
    batch = batch_of(task, [ROW, LONG])
    found, lengths = log_probabilities(model(**task.inputs(batch)), batch["labels"])
    assert found.tolist() == pytest.approx(logps(model, batch), rel=1e-5)
    assert lengths.tolist() == (batch["labels"] != IGNORED).sum(1).tolist()


@pytest.mark.parametrize("loss_type", LOSSES)
def test_the_loss_is_the_papers(loss_type: str) -> None:
    model, task = tiny("llama"), Preference.model_validate({"loss_type": loss_type, "beta": 0.3})
    references = {"reference": [-90.0, -80.0, -400.0, -70.0]} if loss_type == "kto" else {}
    if loss_type in ("dpo", "ipo", "hinge"):
        references = {"reference_chosen": [-90.0, -400.0], "reference_rejected": [-80.0, -70.0]}
    batch = batch_of(task, [ROW, LONG], **references)
    found = task.loss(model(**task.inputs(batch)), batch)
    sizes = (batch["labels"] != IGNORED).sum(1)
    values = torch.tensor(logps(model, batch))
    assert float(found) == pytest.approx(float(papers(loss_type, values, sizes, references, 0.3)), rel=1e-4)


def papers(
    kind: str, values: torch.Tensor, sizes: torch.Tensor, reference: dict[str, Any], beta: float
) -> torch.Tensor:
    if kind == "kto":  # wanted and unwanted in turns; without a step's baseline it is zero
        ratio = values - torch.tensor(reference["reference"])
        return (1 - torch.sigmoid(beta * ratio * torch.tensor([1, -1, 1, -1]))).sum()
    chosen, rejected = values.chunk(2)
    mean_chosen, mean_rejected = (values / sizes).chunk(2)
    if kind == "simpo":
        return -logsigmoid(beta * (mean_chosen - mean_rejected) - 0.5).sum()
    if kind == "orpo":
        odds = [mean.exp() / (1 - mean.exp()) for mean in (mean_chosen, mean_rejected)]
        return (-mean_chosen - beta * logsigmoid((odds[0] / odds[1]).log())).sum()
    before = [torch.tensor(reference[f"reference_{side}"]) for side in ("chosen", "rejected")]
    if kind == "ipo":
        first, second = sizes.chunk(2)
        return (((chosen - before[0]) / first - (rejected - before[1]) / second - 1 / (2 * beta)) ** 2).sum()
    lead = beta * ((chosen - before[0]) - (rejected - before[1]))
    return -logsigmoid(lead).sum() if kind == "dpo" else (1 - lead).clamp(min=0).sum()


@pytest.mark.parametrize("loss_type", LOSSES)
def test_a_blank_batch_counts_nothing_and_has_a_graph(loss_type: str) -> None:
    model, task = tiny("llama"), Preference.model_validate({"loss_type": loss_type})
    batch = task.blank(batch_of(task, [ROW]))
    loss = task.loss(model(**task.inputs(batch)), batch)
    loss.backward()
    assert task.targets(batch) == 0
    assert float(loss) == 0
    assert model.lm_head.weight.grad is not None


def test_a_model_against_itself_has_no_margin() -> None:
    model, task = tiny("llama"), Preference()
    batch = batch_of(task, [ROW, LONG])
    outputs = model(**task.inputs(batch))
    batch |= task.reference_values(outputs, batch)
    assert [record["margin"] for record in task.score(outputs, batch)] == [0, 0]
    assert float(task.loss(outputs, batch).detach()) == pytest.approx(2 * 0.693147, rel=1e-5)


def test_kto_reads_single_answers_and_pairs() -> None:
    task = Preference.model_validate({"loss_type": "kto"})
    single = task.windows({"prompt": "Why?", "completion": "So.", "label": "False"}, tokenizer(), 64, None)
    assert [window["wanted"] for window in single] == [0]
    pair = task.windows(ROW, tokenizer(), 64, None)
    assert [window["wanted"] for window in pair] == [1, 0]
    records = [
        {"loss": 0.5, "targets": 1, "reward": 2.0, "wanted": 1},
        {"loss": 0.25, "targets": 1, "reward": -1.0, "wanted": 0},
    ]
    judged = task.judge(ROW, records, None)
    assert (judged["loss"], judged["targets"], judged["margin"]) == (0.75, 2, 3.0)


def test_rows_that_are_no_pairs_are_named() -> None:
    task = Preference()
    for row, reason in (
        ({**ROW, "rejected": ROW["chosen"]}, "are the same"),
        ({**ROW, "chosen": ""}, "no 'chosen'"),
        ({"prompt": "Why?", "completion": "So.", "label": True}, "one answer and no pair"),
    ):
        with pytest.raises(RowError, match=reason):
            task.windows(row, tokenizer(), 64, None)
    assert [desired(word) for word in (True, "true", 1, "0", False, -1)] == [True, True, True, False, False, False]
    with pytest.raises(LabelError, match="neither true nor false"):
        desired("maybe")


def test_settings_of_another_loss_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"--task.gamma is of --task.loss_type simpo, not of dpo"):
        read(["--task", "preference", "--task.gamma", "1", "--data.train", "pairs.jsonl"])


def test_nothing_is_drawn() -> None:
    task = Preference()
    features = task.encode(ROW, tokenizer(), 64)
    assert task.vary(features, tokenizer(), Random(0)) == features
    assert "".join(text for text, learnt in task.pieces(features, tokenizer()) if learnt) == ROW["chosen"] + "</s>"
    assert task.targets(batch_of(task, [ROW, LONG])) == 2
