"""Texts that come and go while others are written are those of `generate`, each alone."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch

from peftkit.config.sections import Generate
from peftkit.serving.choosing import Chooser
from peftkit.serving.stepwise import PREFILL, StepLane, why_not
from tests.serving.writing import PAD, Asker, finish, generated, prompt
from tests.tiny import tiny

LENGTHS = (3, 17, 1, 9, 30, 5)


def lane_of(model: Any, batch: int = 4, **settings: Any) -> StepLane:
    return StepLane(model.eval(), Chooser(Generate(**settings)), batch, nullcontext, PAD)


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen", "gemma"])
@pytest.mark.parametrize("settings", [{}, {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2}])
def test_each_text_is_that_of_generate(family: str, settings: dict[str, Any]) -> None:
    model = tiny(family, seed=1).eval()
    lane, askers = lane_of(model, batch=3, **settings), [Asker() for _ in LENGTHS]
    assert why_not(lane) == ""
    for number, (length, asker) in enumerate(zip(LENGTHS, askers, strict=True)):
        lane.waiting.append(asker.writing(prompt(number, length), 6 + number * 3))
        lane.step()
        lane.step()
    finish(lane)
    for number, (length, asker) in enumerate(zip(LENGTHS, askers, strict=True)):
        assert asker.ids == generated(model, prompt(number, length), 6 + number * 3, **settings)
    assert not lane.running


def test_windows_of_attention_stay_where_they_are() -> None:
    """A text beside longer ones sees its own last tokens, not so many places of the padded rows."""
    import transformers

    config = transformers.MistralConfig(
        vocab_size=320, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=64, sliding_window=6, max_position_embeddings=128,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.MistralForCausalLM(config).eval()
    lane, askers = lane_of(model), [Asker() for _ in range(3)]
    assert why_not(lane) == ""
    for number, asker in enumerate(askers):
        lane.waiting.append(asker.writing(prompt(number, 4 + 9 * number), 20))
        lane.step()
    finish(lane)
    for number, asker in enumerate(askers):
        assert asker.ids == generated(model, prompt(number, 4 + 9 * number), 20)


def test_who_is_given_up_leaves_its_place_at_once() -> None:
    lane, askers = lane_of(tiny("llama"), batch=2), [Asker() for _ in range(3)]
    jobs = [asker.writing(prompt(number, 4), 50) for number, asker in enumerate(askers)]
    lane.waiting.extend(jobs)
    lane.step()
    assert lane.running == tuple(jobs[:2])
    jobs[0].cancelled = True
    lane.step()
    assert lane.running == (jobs[1], jobs[2])
    finish(lane)
    assert not askers[0].told
    assert askers[2].ids == generated(lane.model, prompt(2, 4), 50)


def test_prompts_begin_together_as_far_as_others_can_wait() -> None:
    lane = lane_of(tiny("llama", max_position_embeddings=PREFILL), batch=4)
    jobs = [Asker().writing(prompt(number, length), 5) for number, length in enumerate((PREFILL // 2, 9, 9, 9))]
    lane.waiting.extend(jobs)
    assert lane._admitted() == jobs[:2]
    assert list(lane.waiting) == jobs[2:]


@pytest.mark.parametrize("at", [0, 1, 3])
def test_a_text_that_breaks_the_model_ends_alone(at: int) -> None:
    """It breaks in its prompt, or a few tokens later, after some layers have kept their keys."""
    model = tiny("llama").eval()
    lane, askers = lane_of(model), [Asker() for _ in range(3)]
    jobs = [asker.writing(prompt(number, 4 + number), 8) for number, asker in enumerate(askers)]
    layer = model.model.layers[1]
    forward = layer.forward
    computed: list[Any] = []

    def raising(*words: Any, **named: Any) -> Any:
        if jobs[1] in computed and len(jobs[1].made) == at:
            raise RuntimeError("out of memory")
        return forward(*words, **named)

    inside = lane._forward

    def noting(ids: Any, together: Any) -> Any:
        computed[:] = together.jobs
        return inside(ids, together)

    layer.forward, lane._forward = raising, noting  # type: ignore[method-assign]
    lane.waiting.extend(jobs)
    finish(lane)
    layer.forward = forward
    assert isinstance(askers[1].problem, RuntimeError)
    for number in (0, 2):
        assert askers[number].ids == generated(model, prompt(number, 4 + number), 8)


def test_a_model_that_looks_at_padding_is_found_out() -> None:
    model = tiny("llama").eval()
    forward = model.forward

    def unmasked(attention_mask: Any = None, **words: Any) -> Any:
        return forward(**words)

    lane = lane_of(model)
    model.forward = unmasked
    assert "of their size away" in why_not(lane)


def test_a_model_that_keeps_something_else_is_found_out() -> None:
    """A state space model's memory of a text is not a key and a value for each token."""
    import transformers

    config = transformers.MambaConfig(vocab_size=320, hidden_size=32, num_hidden_layers=2)
    assert why_not(lane_of(transformers.MambaForCausalLM(config)))
