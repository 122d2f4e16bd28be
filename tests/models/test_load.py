"""A base as a run starts from it: what is read, what is new, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.testing import assert_close

from peftkit.config.sections import Model
from peftkit.errors import ModelError
from peftkit.models.inspect import count
from peftkit.models.load import Base, find, fingerprint, fresh_in, load, skeleton
from peftkit.strategies import Full, Strategy
from peftkit.tasks import Task
from tests.tiny import VOCABULARY, save_tiny, tiny, tokenizer

CAUSAL = Task.model_validate("causal_lm")
THREE = Task.model_validate({"name": "sequence_classification", "labels": ["bad", "fair", "good"]})
NEW = [f"<new{number}>" for number in range(30)]
GROWN = len(tokenizer()) + len(NEW)


def read(
    folder: Path, task: Task = CAUSAL, seed: int = 1, strategy: Strategy | None = None, dtype: Any = torch.float32, **more: Any
) -> Base:  # fmt: skip
    return load(Model(path=str(folder), **more), task, strategy or Full(), dtype, seed, folder.parent / "cache")


def test_the_weights_are_those_of_the_files(tmp_path: Path) -> None:
    base = read(save_tiny(tmp_path / "base"))
    ids = torch.arange(5, 25)[None]
    assert_close(base.model(input_ids=ids).logits, tiny("llama")(input_ids=ids).logits)
    assert (base.fresh, base.model.training) == ((), True)


def test_a_pickle_in_a_folder_is_read_as_data(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "base")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert_close(read(folder).model.state_dict(), tiny("llama").state_dict())


def trainable(model: nn.Module) -> dict[str, bool]:
    return {name: parameter.requires_grad for name, parameter in model.named_parameters()}


class Harm:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("harm"),))


def test_a_pickle_runs_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = save_tiny(tmp_path / "base")
    (folder / "model.safetensors").unlink()
    torch.save({"model.norm.weight": Harm()}, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"cannot be loaded: its weights are a pickle .* nothing of it was run"):
        read(folder)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize(
    ("family", "head", "fresh"),
    [
        ("llama", None, ["score.weight"]),
        ("gpt2", None, ["score.weight"]),
        ("bert", "masked_lm", ["bert.pooler.dense.weight", "bert.pooler.dense.bias", "classifier.weight", "classifier.bias"]),
        ("bert", "base", ["classifier.weight", "classifier.bias"]),
        ("bert", "sequence_classification", ["classifier.weight", "classifier.bias"]),  # of two labels
        ("electra", "base", [f"classifier.{layer}.{kind}" for layer in ("dense", "out_proj") for kind in ("weight", "bias")]),
        ("t5", None, [f"classification_head.{layer}.{kind}" for layer in ("dense", "out_proj") for kind in ("weight", "bias")]),
    ],
)  # fmt: skip
def test_what_the_files_lack_is_fresh(family: str, head: str | None, fresh: list[str], tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "base", family, head=head)
    base = read(folder, THREE)
    assert base.fresh == tuple(fresh)
    assert fresh_in(skeleton(Model(path=str(folder)), THREE, Full(), torch.float32), str(folder)) == base.fresh


@pytest.mark.parametrize("family", ["t5", "bart", "marian", "whisper"])
def test_an_encoder_decoder_lacks_nothing_though_files_leave_out_what_can_be_computed(
    family: str, tmp_path: Path
) -> None:
    task = Task.model_validate("speech_recognition" if family == "whisper" else "seq2seq")
    folder = save_tiny(tmp_path / "base", family)
    tensors = {
        name: tensor for name, tensor in load_file(folder / "model.safetensors").items() if "embed_pos" not in name
    }
    if family in ("marian", "whisper"):  # positions are sinusoids, which some checkpoints do not store
        tensors |= {"model.decoder.embed_positions.weight": torch.zeros(128, 32)} if family == "whisper" else {}
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    base = read(folder, task)
    assert base.fresh == ()
    assert trainable(base.model) == trainable(tiny(family))  # from_pretrained alone would let the sinusoids train


def test_a_head_of_the_same_shape_is_not_fresh(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "base", "bert", num_labels=3)
    base = read(folder, THREE)
    assert base.fresh == ()
    assert_close(base.model.classifier.weight, tiny("bert", num_labels=3).classifier.weight)


def test_the_seed_draws_what_is_fresh(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "base")
    first, again, other = (read(folder, THREE, seed, add_tokens=NEW).model for seed in (1, 1, 2))
    assert_close(first.state_dict(), again.state_dict(), rtol=0, atol=0)
    assert not first.score.weight.equal(other.score.weight)


@pytest.mark.parametrize(("family", "tied"), [("llama", False), ("gemma", True), ("gpt2", True)])
def test_added_tokens_grow_the_embeddings_and_train(family: str, tied: bool, tmp_path: Path) -> None:
    base = read(save_tiny(tmp_path / "base", family), add_tokens=NEW)
    inner, outer = base.model.get_input_embeddings().weight, base.model.get_output_embeddings().weight
    assert (len(inner), len(outer), inner is outer) == (GROWN, GROWN, tied)
    assert {id(dict(base.model.named_parameters())[name]) for name in base.fresh} == {id(inner), id(outer)}
    assert_close(inner[:VOCABULARY], tiny(family).get_input_embeddings().weight)
    assert base.model(input_ids=torch.tensor([[5, GROWN - 1]])).logits.shape == (1, 2, GROWN)
    settings = Model(path=base.source, add_tokens=NEW)
    assert fresh_in(skeleton(settings, CAUSAL, Full(), torch.float32), base.source) == base.fresh


def test_added_tokens_that_fit_leave_the_size(tmp_path: Path) -> None:
    base = read(save_tiny(tmp_path / "base"), add_tokens=["<one>"])
    assert base.model.get_input_embeddings().num_embeddings == VOCABULARY
    assert base.fresh == ("model.embed_tokens.weight", "lm_head.weight")


def test_a_vocabulary_smaller_than_the_tokenizer_is_refused(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "base", vocab_size=len(tokenizer()) - 7)
    with pytest.raises(
        ModelError, match=r"7 tokens more than the model's vocabulary of 293.*--model\.add_tokens.*--model\.tok"
    ):
        read(folder)


@pytest.mark.parametrize("change", ["missing", "shape"])
def test_layers_that_do_not_fit_are_refused(change: str, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "base")
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    if change == "missing":
        del tensors[name]
    else:
        tensors[name] = tensors[name][:-1].contiguous()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=rf"1 weights .* missing or of another shape \({name}\)"):
        read(folder)


def test_a_corrupt_file_is_named_before_anything_is_built(tmp_path: Path) -> None:
    file = save_tiny(tmp_path / "base") / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ModelError, match=f"{file} is corrupt or cut short"):
        read(file.parent)


def test_an_encoder_is_no_causal_language_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="--task causal_lm needs a decoder"):
        read(save_tiny(tmp_path / "base", "bert", head="masked_lm"))


def test_dropout_and_checkpointing_are_set(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "base", "gpt2")
    model = read(folder, dropout=0.25, gradient_checkpointing=True).model
    assert {module.p for module in model.modules() if isinstance(module, nn.Dropout)} == {0.25}
    assert (model.transformer.h[0].gradient_checkpointing, model.config.use_cache) == (True, False)


def test_checkpointing_gives_the_same_gradient(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "base")
    ids = torch.arange(5, 25)[None]
    gradients = []
    for checkpointing in (False, True):
        model = read(folder, gradient_checkpointing=checkpointing).model
        model(input_ids=ids, labels=ids).loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert_close(*gradients)


def test_dtype_and_attention_are_as_asked(tmp_path: Path) -> None:
    base = read(save_tiny(tmp_path / "base"), dtype=torch.bfloat16, attention="eager")
    assert {parameter.dtype for parameter in base.model.parameters()} == {torch.bfloat16}
    assert base.model.config._attn_implementation == "eager"


def test_a_kernel_that_is_not_installed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"(?i)flash"):
        read(save_tiny(tmp_path / "base"), attention="flash_attention_2")


def test_padding_is_known_to_a_decoder_that_classifies(tmp_path: Path) -> None:
    base = read(save_tiny(tmp_path / "base", pad_token_id=None), THREE)
    assert base.model.config.pad_token_id == base.processor.pad_token_id


@pytest.mark.parametrize("family", ["llama", "gemma", "gpt2", "bert", "bart"])
def test_a_skeleton_has_every_shape_and_no_weight(family: str, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "base", family)
    settings = Model(path=str(folder), add_tokens=NEW)
    blank, whole = (
        skeleton(settings, THREE, Full(), torch.bfloat16),
        load(settings, THREE, Full(), torch.bfloat16, 1).model,
    )
    assert {parameter.device.type for parameter in blank.parameters()} == {"meta"}
    assert [(name, p.shape, p.dtype) for name, p in blank.named_parameters()] == [
        (name, p.shape, p.dtype) for name, p in whole.named_parameters()
    ]


@pytest.mark.parametrize(("family", "width"), [("llama", "hidden_size"), ("gpt2", "n_embd"), ("bert", "hidden_size")])
def test_a_quantised_skeleton_adapts_as_the_quantised_model_does(family: str, width: str, tmp_path: Path) -> None:
    task = THREE if family == "bert" else CAUSAL
    folder = save_tiny(tmp_path / "base", family, **{width: 64})
    strategy = Strategy.model_validate("qlora")
    blank = skeleton(Model(path=str(folder)), task, strategy, torch.float32)
    base = read(folder, task, strategy=strategy)
    adapted = strategy.adapt(blank, fresh_in(blank, str(folder))), strategy.adapt(base.model, base.fresh)
    assert count(adapted[0]) == count(adapted[1])
    assert [(name, type(p).__name__, p.dtype) for name, p in adapted[0].named_parameters()] == [
        (name, type(p).__name__, p.dtype) for name, p in adapted[1].named_parameters()
    ]


def test_the_fingerprint_is_of_the_weights(tmp_path: Path) -> None:
    one, same, other = (save_tiny(tmp_path / name, seed=seed) for name, seed in (("a", 0), ("b", 0), ("c", 1)))
    prints = [fingerprint(Model(path=str(folder)), str(folder), tmp_path / "cache") for folder in (one, same, other)]
    assert prints[0] == prints[1] != prints[2]
    assert read(one).fingerprint == prints[0]


@pytest.mark.real
def test_the_demonstration_answers(tmp_path_factory: pytest.TempPathFactory) -> None:
    try:
        source = find(Model())
    except ModelError as problem:
        pytest.skip(f"the demonstration model is not to be had: {problem}")
    base = load(Model(), Task.model_validate("chat"), Full(), torch.float32, 1)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = base.processor.apply_chat_template(
        question, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    answer = base.model.eval().generate(**inputs, max_new_tokens=10, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert base.processor.decode(answer, skip_special_tokens=True) == "The capital of France is Paris."
    assert base.source == source
