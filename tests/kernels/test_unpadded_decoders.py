"""Decoders behind encoders without padding: what is read of them and all gradients are those of padded rows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from peftkit.config.run import Run
from peftkit.config.speed import Speed
from peftkit.engine.world import World
from peftkit.flows.job import make_job
from peftkit.flows.stages import open_at
from peftkit.kernels import attention
from peftkit.kernels.quicken import quicken
from peftkit.kernels.segments import Rows, Segments
from peftkit.kernels.unpadded import disagreement, unpad
from peftkit.strategies import Lora
from peftkit.tasks import Seq2Seq
from peftkit.tasks.base import IGNORED
from peftkit.tasks.positions import Wanted, reading
from tests.kernels.test_unpadded import BART, NEAR, assert_equal_learnt, made
from tests.tasks.test_seq2seq import model_of
from tests.tiny import save_tiny

CALM = BART | {"attention_dropout": 0, "activation_dropout": 0, "pad_token_id": 1}
EARS = CALM | {"num_mel_bins": 8, "max_source_positions": 10, "max_target_positions": 64}
FAMILIES = {
    "bart": ("BartForConditionalGeneration", CALM),
    "marian": ("MarianMTModel", CALM | {"decoder_start_token_id": 1}),
    "m2m": ("M2M100ForConditionalGeneration", CALM | {"decoder_layerdrop": 0, "encoder_layerdrop": 0}),
    "mbart": ("MBartForConditionalGeneration", CALM),
    "pegasus": ("PegasusForConditionalGeneration", CALM),
    "whisper": ("WhisperForConditionalGeneration", EARS | {"decoder_start_token_id": 1}),
}
SOURCES, TARGETS = (13, 3, 6, 9), (2, 11, 1, 6)
"""Tokens of each row; whisper hears all of every row."""


def batch_of(family: str, sources: tuple[int, ...] = SOURCES, targets: tuple[int, ...] = TARGETS) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    rows = len(sources)
    written = torch.arange(max(targets)) < torch.tensor(targets)[:, None]
    ids = torch.randint(5, 90, (rows, max(targets) + 1), generator=generator)
    batch = {"labels": ids[:, 1:].where(written, IGNORED), "decoder_input_ids": ids[:, :-1] * written}
    if family == "whisper":
        return batch | {"input_features": torch.randn(rows, 8, 20, generator=generator)}
    mask = (torch.arange(max(sources)) < torch.tensor(sources)[:, None]).long()
    ids = torch.randint(5, 90, (rows, max(sources)), generator=generator)
    return batch | {"input_ids": ids * mask + 1 - mask, "attention_mask": mask}


def read(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """The logits of the targets, (targets, vocabulary)."""
    with reading(Wanted(batch["labels"], logits=True)):
        logits: Tensor = model(**Seq2Seq().inputs(batch)).logits
    return logits[batch["labels"] != IGNORED]


def learnt(model: Any, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    outputs = read(model, batch)
    (outputs.square() * torch.linspace(0.5, 1.5, outputs.shape[-1])).sum().backward()
    grads = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    return outputs.detach(), grads


@pytest.fixture
def shapes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Queries and keys of each attention without padding."""
    calls: list[tuple[int, int]] = []
    original = attention.by_segment

    def counted(query: Tensor, key: Tensor, *rest: Any) -> Tensor:
        calls.append((query.shape[2], key.shape[2]))
        return original(query, key, *rest)

    monkeypatch.setattr(attention, "by_segment", counted)
    return calls


@pytest.mark.parametrize("way", ["full", "lora", "checkpointed", "frozen encoder"])
@pytest.mark.parametrize("family", FAMILIES)
def test_decoders_without_padding_learn_the_same(family: str, way: str, shapes: list[tuple[int, int]]) -> None:
    model = made(*FAMILIES[family]).train()
    if way == "lora":
        model = Lora(rank=2).adapt(model)
    if way == "checkpointed":
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if way == "frozen encoder":
        model.get_encoder().requires_grad_(False)
    batch = batch_of(family)
    expected = learnt(model, batch)
    unpad(model)
    assert_equal_learnt(expected, learnt(model, batch))
    heard = 40 if family == "whisper" else 31
    assert {(20, 20), (20, heard)} <= set(shapes)


@pytest.mark.parametrize(
    ("sources", "targets"),
    [
        ((1, 1, 1), (1, 4, 2)),  # padding in the decoder alone
        ((4, 4), (1, 3)),
        ((1, 6), (0, 3)),  # a row of which nothing is read
        ((3, 6), (0, 0)),  # and a batch that only keeps processes in step
    ],
)
def test_rows_of_any_lengths_learn_the_same(
    sources: tuple[int, ...], targets: tuple[int, ...], shapes: list[tuple[int, int]]
) -> None:
    batch = batch_of("bart", sources, targets if any(targets) else (2, 3))
    batch = batch if any(targets) else Seq2Seq().blank(batch)
    model = made(*FAMILIES["bart"]).train()
    expected = learnt(model, batch)
    unpad(model)
    found = learnt(model, batch)
    assert (sum(max(count, 1) for count in targets), sum(sources)) in shapes
    if any(targets):
        assert_equal_learnt(expected, found)
    else:
        assert found[1].keys() == expected[1].keys() and not any(grad.any() for grad in found[1].values())


@pytest.mark.parametrize("rows", [1, 4])
def test_what_stands_before_and_behind_the_targets_changes_nothing(rows: int, shapes: list[tuple[int, int]]) -> None:
    """Tokens that name a language are not learnt, and a row may end in tokens that are not."""
    batch = {name: value[:rows] for name, value in batch_of("bart", targets=(8, 11, 5, 6)).items()}
    batch["labels"][:, :2] = IGNORED
    batch["labels"][0, 6:] = IGNORED
    model = made(*FAMILIES["bart"]).train()
    expected = learnt(model, batch)
    unpad(model)
    assert_equal_learnt(expected, learnt(model, batch))
    assert {query for query, _ in shapes} >= {6 if rows == 1 else 28}


def test_rows_with_gaps_inside_learn_the_same(shapes: list[tuple[int, int]]) -> None:
    batch = batch_of("bart")
    batch["attention_mask"][[0, 2], [1, 4]] = 0
    model = made(*FAMILIES["bart"]).train()
    expected = learnt(model, batch)
    hung = unpad(model)
    assert_equal_learnt(expected, learnt(model, batch))
    assert (20, 29) in shapes
    hung.remove()
    told = (batch["labels"] != IGNORED).long()
    told[1, 1] = 0
    batch |= {"decoder_attention_mask": told, "labels": batch["labels"].masked_fill(told == 0, IGNORED)}
    expected = learnt(model, batch)
    unpad(model)
    assert_equal_learnt(expected, learnt(model, batch))
    assert (19, 29) in shapes


def test_keys_that_nobody_looks_at_get_no_gradient() -> None:
    rows = Rows(torch.tensor([[1, 1], [0, 0], [1, 0]]).bool())
    keys = Segments(Rows(torch.ones(3, 2).bool()), False, None, lambda *_: None, lambda: None).across(rows)
    query, key = torch.randn(1, 2, 3, 8, requires_grad=True), torch.randn(1, 2, 6, 8, requires_grad=True)
    with patch_empty():
        attention.by_segment(query, key, key, keys).sum().backward()
    assert key.grad is not None and not key.grad[:, :, 2:4].any() and key.grad[:, :, :2].any()


@contextmanager
def patch_empty() -> Iterator[None]:
    """Memory that was not written to holds something."""
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def test_who_writes_or_reads_all_gets_padded_rows(shapes: list[tuple[int, int]]) -> None:
    model = made(*FAMILIES["bart"]).eval()
    batch = batch_of("bart")
    words = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "max_new_tokens": 5}
    asked = {**words, "do_sample": False, "use_cache": True, "decoder_start_token_id": 2}
    written, whole = model.generate(**asked), model(**Seq2Seq().inputs(batch)).logits
    unpad(model)
    torch.testing.assert_close(read(model, batch), whole[batch["labels"] != IGNORED], rtol=NEAR, atol=NEAR)
    assert (20, 31) in shapes
    shapes.clear()
    assert torch.equal(model.generate(**asked), written)
    torch.testing.assert_close(model(**Seq2Seq().inputs(batch)).logits, whole, rtol=NEAR, atol=NEAR)
    assert set(shapes) == {(31, 31)}


def header(model: Any, batch: dict[str, Tensor]) -> str:
    quick = quicken(model, Seq2Seq(), Speed(mode="plain", unpad="on"))

    def run() -> None:
        with reading(Wanted(batch["labels"])):
            model(**Seq2Seq().inputs(batch))

    quick.prove(run)
    return "; ".join(word for word in quick.words if word.startswith("layers see"))


def test_the_header_names_the_layers_that_are_told_of_no_padding() -> None:
    whole = "layers see no padding: 100% of what they compute is useful tokens"
    assert header(made(*FAMILIES["bart"]), batch_of("bart")) == whole
    found = header(made(*FAMILIES["bart"]), batch_of("bart", targets=(3, 3, 3, 3)))
    assert found == "layers see no padding, but those of model.decoder.layers, which are told of none"
    found = header(made(*FAMILIES["whisper"]), batch_of("whisper"))
    assert found == "layers see no padding, but those of model.encoder.layers, which are told of none"


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({}, "layers see no padding: 100% of what they compute is useful tokens"),
        # Whole distributions are compared, and nobody says what is read.
        (
            {"regularize": {"r_drop": 1}},
            "layers see no padding, but those of model.decoder.layers, which are told of none",
        ),
    ],
)
def test_a_run_says_what_holds_also_where_all_targets_are_as_long(
    more: dict[str, Any], expected: str, world: World, tmp_path: Path, shapes: list[tuple[int, int]]
) -> None:
    save_tiny(tmp_path / "bart", "bart", dropout=0.1)
    lines = [json.dumps({"source": "word " * row, "target": "word"}) for row in (1, 2, 3)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    data = {"train": str(tmp_path / "rows.jsonl"), "holdout": 0, "cache": str(tmp_path / "cache")}
    run = {"model": str(tmp_path / "bart"), "task": "seq2seq", "strategy": "full", "data": data, "steps": 1} | more
    job = make_job(Run.model_validate(run | {"speed": {"mode": "plain", "unpad": "on"}}), world)
    open_at(job, 0, None).close()
    assert [word for word in job.quickened if word.startswith("layers see")] == [expected]
    assert any(query != key for query, key in shapes) is not bool(more)


def test_a_decoder_that_would_keep_a_cache_is_asked_for_none(shapes: list[tuple[int, int]]) -> None:
    """An encoder and a decoder that were put together have configurations of their own, which training does not reach."""
    model = model_of("bert2bert").train()
    model.config.use_cache = False
    assert model.config.decoder.use_cache
    batch = batch_of("bart")
    expected = learnt(model, batch)
    assert header(model, batch) == "layers see no padding: 100% of what they compute is useful tokens"
    shapes.clear()
    assert_equal_learnt(expected, learnt(model, batch))
    assert {(20, 20), (20, 31)} <= set(shapes)
    whole = batch | {"decoder_attention_mask": torch.ones_like(batch["labels"])}  # with which the decoder keeps one
    whole["decoder_attention_mask"][0, -1] = 0
    assert "told of none" in header(model_of("bert2bert").train(), whole)


def test_a_decoder_that_was_not_proven_stays_padded(shapes: list[tuple[int, int]]) -> None:
    model = made(*FAMILIES["bart"]).eval()
    alike = batch_of("bart", targets=(3, 3, 3, 3))
    hung = unpad(model, proven=False)
    for proof, queries in ((batch_of("bart"), {31, 20}), (alike, {31})):
        assert disagreement(hung, lambda: read(model, proof)) is None  # noqa: B023
        shapes.clear()
        read(model, batch_of("bart"))
        assert {query for query, _ in shapes} == queries
