"""A model behind another program writes and answers as the model that it stands for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from peftkit.config.speed import Speed
from peftkit.evaluation.verify import Question, answer
from peftkit.exporters.runtime import Runtime
from peftkit.kernels.quicken import quicken
from peftkit.tasks import Task
from tests.tiny import save_tiny


class Behind(Runtime):
    """Another program, for which the model itself stands in."""

    def __init__(self, model: Any) -> None:
        super().__init__(model.config, model.generation_config)
        self.program = [model]  # no part of this module

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **_: Any) -> Any:
        return self.program[0](input_ids=input_ids, attention_mask=attention_mask, use_cache=False)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return AutoModelForCausalLM.from_pretrained(save_tiny(tmp_path_factory.mktemp("base"), "llama")).eval()


def test_it_writes_the_same_text(model: Any) -> None:
    ids = torch.tensor([[0, 0, 5, 9, 11], [4, 8, 15, 16, 23]])
    asked = {"input_ids": ids, "attention_mask": (ids > 0).long(), "max_new_tokens": 12, "pad_token_id": 0}
    for how in ({"do_sample": False}, {"do_sample": False, "num_beams": 3}):
        assert torch.equal(
            model.generate(**asked, **how), Behind(model).eval().generate(**asked, **how, use_cache=True)
        )


def test_a_certificate_can_be_made_of_it(model: Any) -> None:
    asked = Question([{"input_ids": torch.tensor([[4, 8, 15]])}], [None], [torch.tensor([4, 8])])
    first, second = answer(model, asked), answer(Behind(model), asked)
    assert torch.equal(first.logits, second.logits)
    assert torch.equal(first.texts[0], second.texts[0])


def test_what_quickens_models_leaves_it_alone(model: Any) -> None:
    behind, inputs = Behind(model), {"input_ids": torch.tensor([[4, 8, 15]])}
    before = behind(**inputs).logits
    quicken(behind, Task.model_validate("causal_lm"), Speed(unpad="off"))
    assert torch.equal(behind(**inputs).logits, before)
