"""What the run and the task change in a model's configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from peftkit.config.sections import Model
from peftkit.errors import ModelError
from peftkit.models.configure import configure, context_limit, keep_no_cache, set_dropout
from peftkit.tasks import Task
from tests.tiny import FAMILIES, IMAGES, POSITIONS, config, model_class, save_tiny

CAUSAL = Task.model_validate("causal_lm")


WITHOUT = ("resnet", "convnext")


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in WITHOUT])
def test_dropout_reaches_every_dropout_module(family: str) -> None:
    settings = config(family)
    set_dropout(settings, 0.3)
    model = model_class(family)(settings)
    modules = {name: module.p for name, module in model.named_modules() if isinstance(module, nn.Dropout)}
    if family == "efficientnet":  # in its blocks they drop the whole block (drop_connect_rate)
        modules = {name: p for name, p in modules.items() if ".blocks." not in name}
    assert set(modules.values()) <= {0.3}
    assert modules or family in ("llama", "qwen", "gemma", "bart", "marian", "whisper")  # these call the function
    named = {name: value for name, value in settings.to_dict().items() if "dropout" in name or "pdrop" in name}
    assert set(named.values()) == {0.3}


@pytest.mark.parametrize("family", ["t5", "bart", "llama"])
def test_training_keeps_no_keys_and_values(family: str) -> None:
    """T5's decoder has a configuration of its own. Who asks for them, to write, gets them."""
    model = model_class(family)(config(family)).eval()
    ids = torch.tensor([[5, 6, 7]])
    words = {"input_ids": ids, "decoder_input_ids": ids} if model.config.is_encoder_decoder else {"input_ids": ids}
    assert model(**words).past_key_values is not None
    keep_no_cache(model)
    assert model(**words).past_key_values is None
    assert model(**words, use_cache=True).past_key_values is not None


def test_dropping_layers_is_another_thing() -> None:
    settings = config("bart", encoder_layerdrop=0.0)
    set_dropout(settings, 0.3)
    assert settings.encoder_layerdrop == 0.0


def test_parts_of_a_composed_model_are_reached() -> None:
    settings = transformers.LlavaConfig()
    set_dropout(settings, 0.2)
    assert settings.text_config.attention_dropout == settings.vision_config.attention_dropout == 0.2


@pytest.mark.parametrize("settings", [transformers.MambaConfig(), *map(config, WITHOUT)], ids=lambda it: it.model_type)
def test_a_model_without_dropout_says_so(settings: Any) -> None:
    with pytest.raises(ModelError, match=rf"--model\.dropout 0\.1: a {settings.model_type} has no dropout"):
        set_dropout(settings, 0.1)


LIMITS = dict.fromkeys(FAMILIES, POSITIONS) | dict.fromkeys(["t5", *IMAGES, "wav2vec2"])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_longest_input(family: str) -> None:
    assert context_limit(config(family)) == LIMITS[family]


@pytest.mark.parametrize(
    ("kind", "values", "limit"),
    [
        ("RobertaConfig", {"max_position_embeddings": 514, "pad_token_id": 1}, 512),
        ("XLNetConfig", {}, None),
        ("BloomConfig", {}, None),
        ("OPTConfig", {}, 2048),
        ("LlavaConfig", {}, 2048),
    ],
)
def test_the_longest_input_of_others(kind: str, values: dict[str, Any], limit: int | None) -> None:
    assert context_limit(getattr(transformers, kind)(**values)) == limit


def test_the_tasks_options_are_set(tmp_path: Path) -> None:
    task = Task.model_validate({"name": "sequence_classification", "labels": ["bad", "fair", "good"]})
    folder = str(save_tiny(tmp_path / "base", "bert", head="masked_lm"))
    assert configure(Model(path=folder), task, folder).id2label == {0: "bad", 1: "fair", 2: "good"}


def test_a_task_that_the_architecture_cannot_do(tmp_path: Path) -> None:
    folder = str(save_tiny(tmp_path / "base", "vit"))
    with pytest.raises(
        ModelError, match=r"--task causal_lm does not go with this model: .* AutoModelForCausalLM for vit"
    ):
        configure(Model(path=folder), CAUSAL, folder)


@pytest.mark.parametrize("text", ["{ broken", "{}", '{"model_type": "unheard-of"}'])
def test_a_bad_configuration_is_one_message(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelError, match=f"--model {tmp_path}: ") as refused:
        configure(Model(path=str(tmp_path)), CAUSAL, str(tmp_path))
    assert "\n" not in str(refused.value)
