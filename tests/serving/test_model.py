"""Which lane writes a model's texts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import GenerationConfig
from transformers.modeling_outputs import CausalLMOutput

from peftkit.config.sections import Generate
from peftkit.exporters.runtime import Runtime
from peftkit.serving.jobs import Manner, Piece, Writing
from peftkit.serving.model import Served
from peftkit.serving.problems import AskedError
from peftkit.serving.stepwise import StepLane
from peftkit.serving.whole import WholeLane
from peftkit.tasks import Task
from tests.serving.writing import finish
from tests.tiny import tiny, tokenizer


class Elsewhere(Runtime):
    """Another program that computes a tiny Llama, without a cache."""

    def __init__(self, model: Any) -> None:
        super().__init__(model.config)
        self._model = [model]  # in a list: not a part of this one

    def forward(self, input_ids: Any, attention_mask: Any = None, **others: Any) -> CausalLMOutput:
        return CausalLMOutput(logits=self._model[0](input_ids=input_ids, attention_mask=attention_mask).logits)


def served(model: Any, task: str = "causal_lm", **generate: Any) -> Served:
    own = {"name": "m", "rows": None, "columns": {}, "batch": 4, "window": 0.0, "context": 128}
    settings = Generate(max_new_tokens=9, **generate)
    return Served(model=model.eval(), processor=tokenizer(), task=Task.model_validate(task), generate=settings, **own)


def told(one: Served, text: str) -> list[Any]:
    """All that is told of a text that goes on after this one."""
    found: list[Any] = []
    lane, prompt = one.text_lane, one.completion(text)
    assert lane
    job: Writing = one.writing(prompt, Manner(one.room(prompt, None, "max_tokens")), found.append, streams=True)
    lane.waiting.append(job)
    finish(lane)
    return found


def test_a_decoder_is_written_step_by_step() -> None:
    assert isinstance(served(tiny("llama")).text_lane, StepLane)
    assert isinstance(served(tiny("llama"), num_beams=2).text_lane, WholeLane)
    forced = tiny("llama")
    forced.generation_config = GenerationConfig(forced_eos_token_id=2)
    assert isinstance(served(forced).text_lane, WholeLane)
    assert isinstance(served(tiny("t5"), "seq2seq").text_lane, WholeLane)
    assert served(tiny("bert"), "sequence_classification").text_lane is None


def test_another_program_writes_one_text_at_a_time_and_is_followed() -> None:
    model = tiny("llama", seed=4)
    here, there = served(model), served(Elsewhere(model))
    lane = there.text_lane
    assert isinstance(lane, WholeLane)
    assert lane.batch == 1
    *pieces, end = told(there, "The quick")
    assert end == told(here, "The quick")[-1]
    assert len(pieces) > 1
    assert "".join(piece.text for piece in pieces if isinstance(piece, Piece)) == end.text


def test_a_program_that_cannot_be_followed_is_told_at_its_end() -> None:
    model = tiny("llama", seed=4)

    class Deaf(Elsewhere):
        def generate(self, *words: Any, stopping_criteria: Any = None, **settings: Any) -> torch.Tensor:
            return super().generate(*words, **settings)

    assert told(served(Deaf(model)), "The quick")[-1] == told(served(model), "The quick")[-1]


def test_what_is_asked_of_the_wrong_model_names_the_right_place() -> None:
    llama = served(tiny("llama"))
    with pytest.raises(AskedError, match="holds no conversations; ask it at /v1/completions"):
        llama.chat([{"role": "user", "content": "hello"}])
    with pytest.raises(AskedError, match="continues no texts; ask it at /predict"):
        served(tiny("bert"), "sequence_classification").completion("hello")
    with pytest.raises(AskedError, match="the prompt is empty"):
        llama.completion("")


def test_the_room_for_an_answer_is_the_context_s() -> None:
    one = served(tiny("llama"))
    prompt = one.completion("hello")
    used = len(prompt.ids)
    assert one.room(prompt, None, "max_tokens") == 9
    assert one.room(prompt, 128 - used, "max_tokens") == 128 - used
    with pytest.raises(AskedError, match=f"no room for {129 - used} more; at most {128 - used}"):
        one.room(prompt, 129 - used, "max_tokens")
    long = one.completion("the cat " * 100)
    with pytest.raises(AskedError, match=f"context is 128 tokens, and the prompt has {len(long.ids)}") as problem:
        one.room(long, None, "max_tokens")
    assert problem.value.code == "context_length_exceeded"
