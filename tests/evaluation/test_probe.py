"""A probe is the same on every machine, holds no row, and measures a difference as large as it is."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from peftkit.evaluation import probe
from peftkit.evaluation.certificate import Limits, Probe
from peftkit.evaluation.figures import compare, limits
from peftkit.evaluation.verify import Answer, answer
from tests.tiny import tiny
from tests.trained import inputs_for

LIMITS = limits(torch.float32, True)


def of(family: str, **words: Any) -> tuple[Any, Probe]:
    model = tiny(family, **words)
    made, asked = probe.probing(model, {**inputs_for(family, rows=3, length=30)}, each=False)
    given = answer(model, asked)
    found = probe.certified(made, asked, given, given)
    assert found is not None
    return model, found


@pytest.mark.parametrize("family", ["llama", "bert", "t5", "vit", "wav2vec2", "whisper"])
def test_the_same_is_asked_again_from_what_the_certificate_says(family: str) -> None:
    model, held = of(family)
    again = Probe.model_validate_json(held.model_dump_json())
    assert probe.remeasured(again, answer(model, probe.asked(again)), LIMITS)[0] < 1e-6
    assert probe.remeasured(again, answer(model, probe.asked(again)), LIMITS)[2] == []


def test_the_tokens_are_those_of_a_frozen_stream() -> None:
    """Whoever draws others asks another question than the one that was answered."""
    how = {"shape": [2, 4], "draw": "ids", "below": 1000, "without": [0, 1, 2]}
    assert probe.drawn(how, 7).tolist() == [[178, 199, 540, 505], [582, 214, 922, 618]]
    sound = probe.drawn({"shape": [3], "draw": "normal"}, 7)
    assert sound.tolist() == pytest.approx([1.6905257, -0.4659374, 0.0328202], abs=1e-6)


def test_what_is_in_the_rows_does_not_matter() -> None:
    model = tiny("llama")
    one, other = (torch.full((2, 20), value) for value in (5, 9))
    assert probe.recipe(model, {"input_ids": one}) == probe.recipe(model, {"input_ids": other})
    made = probe.recipe(model, {"input_ids": one, "attention_mask": torch.ones_like(one)})
    ids = probe.drawn(made["input_ids"], 7)
    assert ids.shape == (2, probe.LENGTH)
    assert not set(ids.flatten().tolist()) & set(made["input_ids"]["without"])
    assert made["input_ids"]["without"] == probe.special(model.config) != []


@pytest.mark.parametrize(("width", "near"), [(10, 1e-6), (3000, 0.1)])
@pytest.mark.parametrize("size", [0.01, 0.3])
def test_a_sketch_measures_a_difference_as_large_as_it_is(width: int, near: float, size: float) -> None:
    made = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(32, width, generator=made)
    other = logits + size * 3 * torch.randn(32, width, generator=made)
    found = probe.distance(probe.sketch(logits), probe.sketch(other))
    assert found == pytest.approx(compare(Answer(logits), Answer(other), LIMITS).relative_error, rel=near)


@pytest.mark.parametrize(
    ("alter", "said"),
    [
        (lambda logits: logits * 1.01, "differ from the trained model's by"),
        (lambda logits: logits.roll(1, -1), "likeliest class differs"),
        (lambda logits: logits.fill_(torch.nan), "by nan"),
        (lambda logits: logits[:, :-1], "classes at"),
        (lambda logits: logits[:3], "positions instead of"),
    ],
)
def test_another_answer_is_told(alter: Any, said: str) -> None:
    model, held = of("llama")
    given = answer(model, probe.asked(held))
    wrong = probe.remeasured(held, Answer(alter(given.logits.clone()), given.texts), LIMITS)[2]
    assert any(said in sentence for sentence in wrong), wrong


def test_other_words_are_told_where_nothing_is_rounded() -> None:
    model, held = of("llama")
    given = answer(model, probe.asked(held))
    given.texts[0] = given.texts[0] + 1
    assert "other words" in probe.remeasured(held, given, LIMITS)[2][0]
    lossy: Limits = limits(torch.bfloat16, True)
    assert probe.remeasured(held, given, lossy)[2] == []


def test_an_answer_that_is_no_number_is_not_kept() -> None:
    model = tiny("bert", num_labels=3)
    made, asked = probe.probing(model, inputs_for("bert"), each=False)
    broken = Answer(torch.full((2, 3), torch.nan))
    assert probe.certified(made, asked, broken, broken) is None
