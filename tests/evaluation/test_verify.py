"""The comparison lets the right exports pass and refuses the wrong ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from peftkit.config.run import Run
from peftkit.errors import ExportError
from peftkit.evaluation.certificate import Figures
from peftkit.evaluation.figures import compare, limits, problems, stored_format
from peftkit.evaluation.verify import (
    Answer,
    answer,
    in_fp32,
    prompts,
    question,
    target_mask,
    thinned,
    widened,
)
from peftkit.exporters import Merged
from peftkit.flows.export import put_trained, reading_of
from peftkit.models.load import load
from peftkit.strategies import Lora, Qlora, Strategy
from tests.tiny import save_tiny, tiny
from tests.trained import label_rows, language_rows, shake

WIDE = {"hidden_size": 64, "intermediate_size": 128}
Alter = Callable[[Any], Any]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("verify") / "base", "llama", **WIDE)


def trained(base: Path, strategy: Strategy, dtype: torch.dtype) -> Any:
    found = load(Run.model_validate({"model": str(base)}).model, language_rows()[0], strategy, dtype, seed=0)
    return shake(strategy.adapt(found.model, found.fresh))


def verdict(
    folder: Path,
    base: Path,
    strategy: Strategy,
    dtype: torch.dtype,
    alter: Alter = lambda model: model,
    merger: Strategy | None = None,
    exporter: Merged = Merged(),  # noqa: B008  # frozen
) -> list[str]:
    """What is wrong with the export of `alter`(trained model), merged by `merger`, compared with the trained model."""
    task, batches = language_rows()
    model = trained(base, strategy, dtype)
    run = Run.model_validate({"model": str(base), "strategy": strategy.model_dump(), "task": "causal_lm"})
    reading, asked = reading_of(model, run, str(base)), question(model, task, batches)
    expected = answer(model, asked)
    exporter.write(alter(model), merger or strategy, folder, reading, {})
    allowed = limits(stored_format(folder), bool(asked.prompts))
    return problems(compare(expected, answer(exporter.open(folder, reading), asked), allowed), allowed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "strategy", [Lora(rank=4), Qlora(rank=4), Qlora(rank=4, dora=True)], ids=lambda s: f"{s.name}{s.dora}"
)
def test_a_right_merge_passes(strategy: Lora, dtype: torch.dtype, base: Path, tmp_path: Path) -> None:
    assert verdict(tmp_path, base, strategy, dtype) == []


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_right_merge_passes_in_every_format(dtype: str, base: Path, tmp_path: Path) -> None:
    exporter = Merged.model_validate({"dtype": dtype})
    assert verdict(tmp_path, base, Qlora(rank=4), torch.bfloat16, exporter=exporter) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_qlora_adapter_merged_into_the_original_weights_is_refused(
    dtype: torch.dtype, base: Path, tmp_path: Path
) -> None:
    """The promise: the adapter has learnt to make up for the rounding to 4 bits; on other weights it is another model."""

    def onto_the_original(model: Any) -> Any:
        weights = {name: parameter.data for name, parameter in model.named_parameters() if parameter.requires_grad}
        original = trained(base, Lora(rank=4), dtype)
        put_trained(original, weights)
        return original

    wrong = verdict(tmp_path, base, Qlora(rank=4), dtype, onto_the_original, merger=Lora(rank=4))
    assert any("logits differ by" in sentence for sentence in wrong)


@pytest.mark.parametrize("name", ["layers.0.self_attn.q_proj.lora_B", "layers.1.mlp.down_proj.lora_B"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_an_adapter_that_lost_one_matrix_is_refused(name: str, dtype: torch.dtype, base: Path, tmp_path: Path) -> None:
    def lose(model: Any) -> Any:
        next(parameter for full, parameter in model.named_parameters() if name in full).data.zero_()
        return model

    assert verdict(tmp_path, base, Lora(rank=4), dtype, lose)


def test_a_forgotten_head_is_refused() -> None:
    task, batches = label_rows()
    model = tiny("bert", num_labels=3)
    adapted = shake(Lora(rank=4).adapt(model, ["classifier.weight", "classifier.bias"]))
    asked = question(adapted, task, batches)
    expected = answer(adapted, asked)
    assert expected.logits.shape == (8, 3)
    adapted.get_submodule("base_model.model.classifier").enable_adapters(False)  # the head as it was made
    assert problems(
        compare(expected, answer(adapted, asked), limits(torch.float32, False)), limits(torch.float32, False)
    )


# The figures


def answers(noise: float, seed: int = 0) -> tuple[Answer, Answer]:
    made = torch.Generator().manual_seed(seed)
    first = 3 * torch.randn(200, 50, generator=made)
    return Answer(first), Answer(first + noise * torch.randn(200, 50, generator=made))


def test_equal_models_differ_by_nothing() -> None:
    figures = compare(*answers(0.0), limits(torch.float32, False))
    assert figures == Figures(kl=0, top1=1, top1_decided=1, relative_error=0, max_difference=0, scale=figures.scale)


def test_the_figures_are_those_of_their_definitions() -> None:
    first, second = answers(0.3)
    figures = compare(first, second, limits(torch.float32, False))
    p, q = first.logits.double().softmax(-1), second.logits.double().softmax(-1)
    assert figures.kl == pytest.approx(float((p * (p / q).log()).sum(-1).mean()))
    assert figures.relative_error == pytest.approx(0.1, rel=0.02)
    assert figures.scale == pytest.approx(3.0, rel=0.05)
    assert figures.top1 == pytest.approx(float((p.argmax(-1) == q.argmax(-1)).double().mean()))
    assert 0.9 < figures.max_difference < 1.8


@pytest.mark.parametrize(("stored", "noise", "passes"), [
    (torch.float32, 3e-5, True), (torch.float32, 3e-3, False),
    (torch.bfloat16, 0.02, True), (torch.bfloat16, 0.1, False),
    (torch.float16, 3e-3, True), (torch.float16, 0.02, False),
])  # fmt: skip
def test_limits_follow_the_format(stored: torch.dtype, noise: float, passes: bool) -> None:
    allowed = limits(stored, False)
    assert (problems(compare(*answers(noise), allowed), allowed) == []) is passes


def test_a_shift_of_all_logits_is_no_difference() -> None:
    first, _ = answers(0.0)
    allowed = limits(torch.float32, False)
    assert problems(compare(first, Answer(first.logits + 5), allowed), allowed) == []


def test_a_single_output_is_compared_as_it_is() -> None:
    first = Answer(torch.linspace(-1, 1, 8)[:, None])
    allowed = limits(torch.float32, False)
    assert problems(compare(first, first, allowed), allowed) == []
    assert problems(compare(first, Answer(first.logits + 0.1), allowed), allowed)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_finite_is_refused(value: float) -> None:
    first, second = answers(0.0)
    second.logits[3, 4] = value
    allowed = limits(torch.bfloat16, False)
    figures = compare(first, second, allowed)
    assert problems(figures, allowed)
    assert Figures.model_validate_json(figures.model_dump_json()) == figures


def test_masked_classes_on_both_sides_are_no_difference() -> None:
    first, second = answers(0.0)
    first.logits[:, 7] = second.logits[:, 7] = -torch.inf
    allowed = limits(torch.float32, False)
    assert problems(compare(first, second, allowed), allowed) == []


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ExportError, match=r"\(200, 49\) instead of \(200, 50\)"):
        compare(answers(0.0)[0], Answer(torch.zeros(200, 49)), limits(torch.float32, False))


def test_other_texts_are_refused_where_nothing_is_rounded() -> None:
    logits, other = answers(0.0)[0].logits, torch.tensor([9])
    first = Answer(logits, [torch.tensor([1, 2]), torch.tensor([3, 4])])
    exact, rounded = limits(torch.float32, True), limits(torch.bfloat16, True)
    half, none = Answer(logits, [first.texts[0], other]), Answer(logits, [other, other])
    assert [compare(first, texts, exact).same_text for texts in (first, half, none)] == [1.0, 0.5, 0.0]
    assert "texts are the same" in problems(compare(first, none, exact), exact)[0]
    assert problems(compare(first, none, rounded), rounded) == []


# What is asked


def test_the_positions_are_those_that_predict_targets() -> None:
    _, (batch, *_) = language_rows()
    mask = target_mask(tiny("llama"), batch)
    assert mask is not None
    assert mask[0].nonzero().flatten().tolist() == list(range(7, 15))
    assert target_mask(tiny("bert", head="token_classification"), batch)[0].nonzero()[0] == 8  # type: ignore[index]
    assert target_mask(tiny("bert"), label_rows()[1][0]) is None


def test_positions_are_thinned_evenly() -> None:
    masks: list[Tensor | None] = [torch.ones(4, 300, dtype=torch.bool), None, torch.ones(2, 300, dtype=torch.bool)]
    thin = thinned(masks)
    assert thin[1] is None
    counts = [int(mask.sum()) for mask in thin if mask is not None]
    assert counts == [300, 150]


def test_prompts_end_before_the_first_target_and_have_no_padding() -> None:
    _, (batch, *_) = language_rows()
    batch["attention_mask"][1, 5:] = 0
    found = prompts(tiny("llama"), [batch])
    assert [ids.tolist() for ids in found] == [batch["input_ids"][0, :8].tolist(), batch["input_ids"][1, :5].tolist()]
    assert prompts(tiny("bert"), label_rows()[1]) == []


def test_the_model_is_left_as_it_was() -> None:
    adapted = shake(Lora(rank=4, dropout=0.5).adapt(tiny("llama").bfloat16()))
    adapted.get_submodule("base_model.model.model.norm").eval()
    before = {name: parameter.detach().clone() for name, parameter in adapted.named_parameters()}
    modes = [module.training for module in adapted.modules()]
    with in_fp32(adapted):
        assert {parameter.dtype for parameter in adapted.parameters()} == {torch.float32}
        assert not adapted.training
    assert [module.training for module in adapted.modules()] == modes
    for name, parameter in adapted.named_parameters():
        assert parameter.dtype == before[name].dtype
        assert_close(parameter, before[name], rtol=0, atol=0)


def test_logits_over_positions_of_texts_of_different_lengths_are_compared_where_there_are_any() -> None:
    long, short = torch.randn(2, 5), torch.randn(3, 4)
    same = Answer(torch.cat(widened([long, short])))
    assert compare(same, same, limits(torch.float32, False)).kl == 0.0
    other = Answer(torch.cat(widened([long, short + torch.tensor([0.0, 0.0, 0.0, 1.0])])))
    assert problems(compare(same, other, limits(torch.float32, False)), limits(torch.float32, False))
