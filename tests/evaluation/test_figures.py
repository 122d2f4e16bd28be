"""How much of a training an export has, and the limits of exporters that round on purpose."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from peftkit.config.export import Bounds
from peftkit.evaluation.figures import compare, limits, problems
from peftkit.evaluation.verify import Answer, Question, answer
from peftkit.strategies import Lora
from tests.tiny import tiny
from tests.trained import inputs_for, shake

EXACT = limits(torch.float32, False)


def three(share: float, noise: float, change: float = 1.0) -> tuple[Answer, Answer, Answer]:
    """What is trained, an export that has `share` of what training changed and some noise, and the start."""
    made = torch.Generator().manual_seed(0)
    start, moved, rounded = (torch.randn(300, 60, generator=made) for _ in range(3))
    return Answer(start + change * moved), Answer(start + share * change * moved + noise * rounded), Answer(start)


@pytest.mark.parametrize("share", [1.0, 0.9, 0.0])
def test_the_share_is_that_of_a_line_through_all_changes(share: float) -> None:
    trained, export, start = three(share, 0.1)
    figures = compare(trained, export, EXACT, start)
    centre = [one.logits - one.logits.mean(-1, keepdim=True) for one in (trained, export, start)]
    x, y = (centre[0] - centre[2]).flatten().double(), (centre[1] - centre[2]).flatten().double()
    assert figures.learnt == pytest.approx(float(torch.linalg.lstsq(x[:, None], y[:, None]).solution), abs=1e-6)
    assert figures.learnt_error is not None
    assert abs(figures.learnt - share) < 4 * figures.learnt_error
    assert 0 < figures.learnt_error < 0.01


def test_it_is_unknown_where_the_start_is_or_nothing_was_learnt() -> None:
    trained, export, start = three(1.0, 0.1)
    assert compare(trained, export, EXACT).learnt is None
    assert compare(start, export, EXACT, start).learnt is None


@pytest.mark.parametrize(("share", "passes"), [(1.0, True), (0.5, False), (0.0, False)])
def test_an_export_that_rounds_may_not_lose_the_training(share: float, passes: bool) -> None:
    """In so few bits the error of its logits tells nothing: without its training it is as far off as rounding may be."""
    trained, export, start = three(share, 0.3, change=0.3)
    allowed = limits(torch.bfloat16, False, tolerance=0.6)
    assert compare(trained, export, allowed, start).relative_error < allowed.relative_error
    wrong = problems(compare(trained, export, allowed, start), allowed)
    assert (wrong == []) is passes
    assert passes or "of what training changed" in wrong[0]


def scale(model: Any) -> None:
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data *= 0.9


def lose_a_layer(model: Any) -> None:
    for name, weight in model.named_parameters():
        if "layers.1." in name and "lora_B" in name:
            weight.data.zero_()


@pytest.mark.parametrize("harm", [scale, lose_a_layer])
@pytest.mark.parametrize(
    ("stored", "tolerance"), [(torch.float32, None), (torch.bfloat16, None), (torch.bfloat16, 0.08)]
)
def test_a_model_that_is_subtly_wrong_is_refused(
    harm: Callable[[Any], None], stored: torch.dtype, tolerance: float | None
) -> None:
    model: Any = shake(Lora(rank=4).adapt(tiny("llama")))
    asked = Question([inputs_for("llama", rows=4, length=40)], [None])
    expected = answer(model, asked)
    with model.disable_adapter():
        start = answer(model, asked)
    harm(model)
    allowed = limits(stored, False, tolerance)
    assert problems(compare(expected, answer(model, asked), allowed, start), allowed)


def test_a_tolerance_takes_the_place_of_the_format() -> None:
    allowed = limits(torch.float32, True, tolerance=0.1)
    assert (allowed.relative_error, allowed.max_difference, allowed.same_text) == (0.1, 2.0, None)
    assert allowed.kl == pytest.approx(0.06)


def test_limits_that_are_asked_for_take_the_place_of_all() -> None:
    bounds = Bounds(max_relative_error=0.3, max_kl=0.2, min_same_text=0.75)
    allowed = limits(torch.float32, True, None, bounds)
    assert (allowed.relative_error, allowed.kl, allowed.same_text, allowed.max_difference) == (0.3, 0.2, 0.75, 6.0)
    assert limits(torch.float32, False, None, bounds).same_text is None
