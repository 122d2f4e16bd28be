"""A GGUF file answers as the transformers model does: logits of padded rows, and the same texts."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from peftkit.exporters.llama_cpp.runtime import LlamaCpp
from tests.exporters.llama_cpp.files import opened, rows, small


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, LlamaCpp]:
    model = small("Llama")
    return model, opened(model, tmp_path_factory.mktemp("runtime"))


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_rows_are_read_without_their_padding(side: str, both: tuple[Any, LlamaCpp]) -> None:
    model, there = both
    inputs = rows(3)
    if side == "left":
        inputs = {name: value.flip(1) for name, value in inputs.items()}
    real = inputs["attention_mask"].bool()
    positions = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        expected = model(**inputs, position_ids=positions).logits
    found = there(**inputs).logits
    torch.testing.assert_close(found[real], expected[real], atol=1e-4, rtol=1e-4)
    assert not found[~real].any()
    last = there(**inputs, logits_to_keep=2).logits
    assert last.shape == (3, 2, expected.shape[-1])
    torch.testing.assert_close(last[0], expected[0, -2:], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"num_beams": 3, "length_penalty": 0.5},
        {"repetition_penalty": 1.3},
        {"no_repeat_ngram_size": 2},
        {"eos_token_id": [7, 250]},
    ],
    ids=str,
)
def test_texts_are_the_same(settings: dict[str, Any], both: tuple[Any, LlamaCpp]) -> None:
    prompts = rows(3, 20, 0)
    prompts["attention_mask"][1, :9] = 0
    how = {"max_new_tokens": 16, "do_sample": False, "pad_token_id": 3, **settings}
    texts = [model.generate(**prompts, **how) for model in both]
    assert torch.equal(*texts)
    assert texts[0].shape[1] > 20
