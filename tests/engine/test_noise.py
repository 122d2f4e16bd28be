"""NEFTune: noise of the paper's size on what the model reads, in training only, drawn from the generator that checkpoints keep."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from peftkit.engine.noise import add_noise, token_tables
from peftkit.engine.random_state import random_state, set_random_state
from peftkit.errors import ConfigError
from peftkit.strategies.lora import Lora
from tests.tiny import HIDDEN, tiny

IDS = torch.arange(10, 22).reshape(2, 6)
MASK = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0]])


def embedded(model: nn.Module, ids: Tensor = IDS, mask: Tensor | None = MASK, **more: Tensor) -> list[Tensor]:
    """What the tables of tokens give in a forward pass, in the order of their calls."""
    found: list[Tensor] = []
    handles = [
        table.register_forward_hook(lambda module, args, output: found.append(output.detach()))
        for table in token_tables(model)
    ]
    with torch.no_grad():
        model(input_ids=ids, attention_mask=mask, **more)
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
def test_the_noise_is_uniform_and_of_the_papers_size(family: str) -> None:
    model = tiny(family)
    (plain,) = embedded(model)
    handles = add_noise(model, alpha=5)
    first, second = (torch.cat([embedded(model)[0] - plain for _ in range(40)], dim=1) for _ in range(2))
    for row, length in enumerate(MASK.sum(-1).tolist()):
        bound = 5 / math.sqrt(length * HIDDEN)
        found = first[row].abs()
        assert 0.98 * bound < found.max() <= bound * (1 + 1e-5)
        assert found.mean() == pytest.approx(bound / 2, rel=0.05)
    assert not torch.equal(first, second)
    for handle in handles:
        handle.remove()
    assert torch.equal(embedded(model)[0], plain)


def test_none_in_evaluation_and_the_same_from_the_same_random_state() -> None:
    model = tiny("llama")
    (plain,) = embedded(model)
    add_noise(model, alpha=5)
    assert torch.equal(embedded(model.eval())[0], plain)
    kept = random_state()
    (first,) = embedded(model.train())
    set_random_state(kept)
    assert torch.equal(embedded(model)[0], first) and not torch.equal(first, plain)


def test_without_a_mask_a_row_is_as_long_as_it_is() -> None:
    model = tiny("llama")
    (plain,) = embedded(model, mask=None)
    add_noise(model, alpha=5)
    bound = 5 / math.sqrt(6 * HIDDEN)
    largest = max(float((embedded(model, mask=None)[0] - plain).abs().max()) for _ in range(40))
    assert 0.98 * bound < largest <= bound * (1 + 1e-5)


def test_an_adapted_model_gets_it_too() -> None:
    adapted = Lora(rank=2).adapt(tiny("llama"))
    (plain,) = embedded(adapted)
    add_noise(adapted, alpha=5)
    assert 0 < (embedded(adapted)[0] - plain).abs().max() <= 5 / math.sqrt(2 * HIDDEN)


@pytest.mark.parametrize("family", ["bart", "t5"])
def test_of_two_sides_the_encoder_gets_it(family: str) -> None:
    model = tiny(family)
    plain = embedded(model, decoder_input_ids=IDS[:, :4])
    add_noise(model, alpha=5)
    encoder, decoder = embedded(model, decoder_input_ids=IDS[:, :4])
    assert not torch.equal(encoder, plain[0]) and torch.equal(decoder, plain[1])


@pytest.mark.parametrize("family", ["vit", "whisper"])
def test_a_model_that_reads_no_tokens_is_refused(family: str) -> None:
    with pytest.raises(
        ConfigError, match=r"--regularize.neftune puts noise on the embeddings of tokens, and \w+ reads"
    ):
        add_noise(tiny(family), alpha=5)
