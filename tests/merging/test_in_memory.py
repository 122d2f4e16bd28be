"""What cannot be streamed is merged in memory, and says why."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers

from tests.merging.made import a_base, assert_as_peft


def test_stacked_experts_that_are_stored_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = transformers.MixtralConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        num_local_experts=4, vocab_size=64,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.MixtralForCausalLM(config).save_pretrained(tmp_path / "base")
    parameters = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    assert_as_peft(tmp_path, target_modules=["q_proj"], target_parameters=parameters)
    assert "in memory, not streamed: transformers puts" in capsys.readouterr().out


@pytest.mark.parametrize("begins", ["pissa", "olora"])
def test_what_begins_from_the_bases_weights(begins: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a_base(tmp_path / "base")
    assert_as_peft(tmp_path, target_modules=["q_proj"], init_lora_weights=begins)
    assert f"not streamed: {begins} takes part of the base's weights" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["OSF", "SHIRA"])
def test_kinds_that_may_begin_from_them(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    configs = {"OSF": peft.OSFConfig, "SHIRA": partial(peft.ShiraConfig, r=4)}
    a_base(tmp_path / "base")
    assert_as_peft(tmp_path, config=configs[kind](target_modules=["q_proj"], task_type="CAUSAL_LM"))
    assert f"not streamed: an adapter of the kind {kind} may begin" in capsys.readouterr().out
