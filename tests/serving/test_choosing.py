"""Tokens that are drawn: with the chances that transformers gives them, and by each text's own seed."""

from __future__ import annotations

from collections import Counter

import torch
from transformers import GenerationConfig

from peftkit.config.sections import Generate
from peftkit.serving.choosing import Chooser, unread
from tests.serving.writing import Asker

LOGITS = torch.tensor([[2.0, 1.0, 0.0, -9.0]])


def test_chances_are_those_of_temperature_and_top_p() -> None:
    job = Asker().writing([4], temperature=0.5, top_p=0.9, seed=1)
    drawn = Counter(Chooser(Generate()).tokens([job], LOGITS)[0] for _ in range(4000))
    # softmax(logits / 0.5) = 0.867, 0.117, 0.016: the first two have 0.9 of it
    expected = torch.tensor([4.0, 2.0]).softmax(0)
    assert drawn.keys() == {0, 1}
    assert abs(drawn[0] / 4000 - float(expected[0])) < 0.02  # 3.9 standard deviations


def test_a_seed_draws_the_same_beside_others() -> None:
    jobs = [Asker().writing([4], temperature=1.0, seed=seed) for seed in (1, 2, 3)]
    alone = Asker().writing([4], temperature=1.0, seed=2)
    chooser = Chooser(Generate())
    together = [chooser.tokens(jobs, LOGITS.repeat(3, 1))[1] for _ in range(20)]
    assert together == [chooser.tokens([alone], LOGITS)[0] for _ in range(20)]


def test_logits_that_are_no_numbers_are_one_texts_problem() -> None:
    jobs = [Asker().writing([4], temperature=1.0), Asker().writing([4])]
    bad, good = Chooser(Generate()).tokens(jobs, torch.cat([LOGITS * float("nan"), LOGITS]))
    assert isinstance(bad, RuntimeError)
    assert good == 0


def test_settings_that_only_generate_knows() -> None:
    usual = GenerationConfig(eos_token_id=2, temperature=0.6, top_k=20, do_sample=True, repetition_penalty=1.1)
    assert unread(usual, Generate()) == []
    assert unread(GenerationConfig(forced_eos_token_id=2), Generate(num_beams=2)) == [
        "forced_eos_token_id",
        "num_beams",
    ]
    assert unread(GenerationConfig(suppress_tokens=[5]), Generate()) == ["suppress_tokens"]
