"""The head at targets alone: the same loss, gradients and records as all logits give, and no tensor of their size."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from peftkit.config.speed import Speed
from peftkit.engine.loop import forward
from peftkit.errors import ConfigError
from peftkit.kernels import cross_entropy
from peftkit.kernels.head import hang_head, output_layer
from peftkit.kernels.logits import UnclearError, after_head
from peftkit.kernels.quicken import quicken
from peftkit.strategies.lora import Lora
from peftkit.tasks import Task
from peftkit.tasks.base import IGNORED, Batch
from peftkit.tasks.positions import TokenLogits, TokenLosses
from peftkit.tasks.r_drop import RDrop
from tests.tiny import tiny, tokenizer

SMALL: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2}
SMALL |= {
    "intermediate_size": 64,
    "vocab_size": 320,
    "head_dim": 8,
    "pad_token_id": 3,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LIKE = {"rtol": 1e-5, "atol": 1e-6}
"""In fp32 both are sums of the same products in another order."""


def batch_of(rows: int = 3, length: int = 11, seed: int = 0, **more: Any) -> Batch:
    """Random rows of other lengths, of whose positions about half are targets."""
    numbers = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, 300, (rows, length), generator=numbers)
    there = torch.arange(length)[None] < torch.randint(2, length + 1, (rows, 1), generator=numbers)
    target = there & (torch.rand(rows, length, generator=numbers) < 0.5)
    return {"input_ids": ids, "attention_mask": there.long(), "labels": ids.where(target, IGNORED), **more}


def learnt(model: nn.Module, task: Any, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss, and the gradient of every weight that trains."""
    model.zero_grad()
    loss = task.loss(forward(model, task, batch), batch)
    loss.backward()
    return loss.detach(), {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}


def scored(model: nn.Module, task: Task, batch: Batch) -> list[dict[str, Any]]:
    with torch.no_grad():
        return task.score(forward(model.eval(), task, batch), batch)


def held(model: nn.Module, task: Any, batch: Batch, kind: type = TokenLosses, **like: float) -> None:
    """Assert that loss, gradients and records are those without the head's patch, and that the patch was there, and is gone."""
    like = like or LIKE
    expected, records = learnt(model, task, batch), scored(model, task, batch)
    plain = model.train().state_dict().keys(), [name for name, _ in model.named_parameters()]
    hooks, _ = hang_head(model, task, "on")
    assert isinstance(forward(model, task, batch), kind)
    assert plain == (model.state_dict().keys(), [name for name, _ in model.named_parameters()])
    found = learnt(model, task, batch)
    assert_close(found[0], expected[0], **like)
    assert found[1].keys() == expected[1].keys()
    for name, gradient in found[1].items():
        scale = float(expected[1][name].abs().max())
        assert_close(
            gradient,
            expected[1][name],
            rtol=like["rtol"],
            atol=like["atol"] * max(scale, 1e-2),
            msg=lambda said, name=name: f"{name}: {said}",
        )
    for one, other in zip(scored(model, task, batch), records, strict=True):
        assert one == pytest.approx(other, rel=like["rtol"])
    for hook in reversed(hooks):
        hook.remove()
    assert not any("forward" in module.__dict__ for module in model.modules())


def task_of(name: str, **settings: Any) -> Task:
    return Task.model_validate({"name": name, **settings})


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("trains", ["all", "body", "lora", "head"])
def test_a_step_is_the_same(tied: bool, trains: str) -> None:
    model: nn.Module = tiny("llama", tie_word_embeddings=tied)
    if trains == "lora":
        model = Lora(rank=4).adapt(model)  # type: ignore[arg-type]
    for name, weight in model.named_parameters():
        if trains in ("body", "head"):
            weight.requires_grad_(("lm_head" in name or "embed" in name) == (trains == "head"))
    held(model, task_of("causal_lm"), batch_of())


@pytest.mark.parametrize("rows", [1, 3, 1000])
@pytest.mark.parametrize("loss", ["sum", "weighted"])
def test_blocks_of_any_size_give_the_layers_gradients(rows: int, loss: str) -> None:
    """Weight and bias train; where the losses weigh differently, their gradients take a second pass."""
    numbers = torch.Generator().manual_seed(1)
    made = [torch.randn(shape, generator=numbers) for shape in ((13, 8), (50, 8), (50,))]
    leaves = [one.requires_grad_() for one in made]
    labels = torch.randint(50, (13,), generator=numbers)
    weights = torch.rand(13, generator=numbers) if loss == "weighted" else torch.full((13,), 0.25)
    after = cross_entropy.After(0.5, 3.0, torch.randn(50, generator=numbers))
    logits = 3 * torch.tanh(0.5 * nn.functional.linear(*leaves) / 3) + after.shift
    expected = nn.functional.cross_entropy(logits, labels, reduction="none")
    found = cross_entropy.token_losses(*leaves, labels, after, True, rows)
    assert_close(found, expected, **LIKE)
    wanted = torch.autograd.grad(expected @ weights, leaves)
    for one, other in zip(torch.autograd.grad(found @ weights, leaves), wanted, strict=True):
        assert_close(one, other, rtol=1e-5, atol=1e-6)
    alone, correct = cross_entropy.token_scores(cross_entropy.Layer(*leaves[1:], after), leaves[0], labels, rows)
    assert_close(alone, expected.detach(), **LIKE)
    assert correct.equal(logits.argmax(-1) == labels)


@pytest.mark.parametrize("tile", [(1, 1), (3, 7), (5, 50), (512, 2048)])
def test_past_a_frozen_weight_tiles_of_any_size_give_the_same(
    tile: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cross_entropy, "TILE", tile)
    numbers = torch.Generator().manual_seed(1)
    hidden, weight, bias = (3 * torch.randn(shape, generator=numbers) for shape in ((13, 8), (50, 8), (50,)))
    labels, weights = torch.randint(50, (13,), generator=numbers), torch.rand(13, generator=numbers)
    expected = nn.functional.cross_entropy(
        nn.functional.linear(hidden.requires_grad_(), weight, bias), labels, reduction="none"
    )
    found = cross_entropy.token_losses(hidden, weight, bias, labels, cross_entropy.After())
    assert_close(found, expected, rtol=1e-5, atol=1e-5)
    wanted, got = (torch.autograd.grad(one @ weights, hidden)[0] for one in (expected, found))
    assert_close(got, wanted, rtol=1e-5, atol=1e-5)


def test_unlikely_labels_have_finite_losses() -> None:
    hidden, weight = torch.tensor([[400.0], [-400.0]], requires_grad=True), torch.tensor([[1.0], [-1.0], [0.0]])
    labels = torch.tensor([1, 1])
    for trains in (False, True):
        found = cross_entropy.token_losses(hidden, weight.requires_grad_(trains), None, labels, cross_entropy.After())
        assert found.tolist() == [800.0, 0.0]


@pytest.mark.parametrize("targets", [0, 1])
@pytest.mark.parametrize("name", ["causal_lm", "preference"])
def test_none_or_one_target(targets: int, name: str) -> None:
    """None: a process that has run out of rows still takes part in every reduction, with zeros."""
    batch = batch_of(4 if name == "preference" else 3)
    batch["labels"] = torch.full_like(batch["labels"], IGNORED)
    batch["labels"][:, 1 : 1 + targets] = 7
    held(tiny("llama"), task_of(name, **({"loss_type": "orpo"} if name == "preference" else {})), batch)


@pytest.mark.parametrize("family", ["bert", "roberta", "albert", "distilbert", "electra"])
def test_masked_words_alone_go_through_the_transform(family: str) -> None:
    held(tiny(family, head="masked_lm"), task_of("masked_lm"), batch_of())


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(("family", "biased"), [("t5", False), ("bart", False), ("marian", False), ("marian", True)])
def test_decoders_of_pairs(family: str, biased: bool, smoothing: float) -> None:
    """Smoothing reads the logits; they are those of targets alone. Marian adds a bias of its own behind the layer, or zeros."""
    model: Any = tiny(family)
    if biased:
        model.final_logits_bias.normal_(generator=torch.Generator().manual_seed(2))
    other = batch_of(seed=5)
    batch = batch_of() | {"decoder_input_ids": other["input_ids"], "labels": other["labels"]}
    held(model, task_of("seq2seq", label_smoothing=smoothing), batch, TokenLogits if smoothing else TokenLosses)


def test_a_decoder_that_is_a_model_of_its_own() -> None:
    """Two BERTs, of which one reads and one writes: what has the output layer in it is called with ids, not hidden states."""
    from transformers import EncoderDecoderConfig, EncoderDecoderModel

    reader, writer = (tiny("bert", head="masked_lm").config for _ in range(2))
    model = EncoderDecoderModel(EncoderDecoderConfig.from_encoder_decoder_configs(reader, writer)).eval()
    model.config.decoder_start_token_id, model.config.pad_token_id = 1, 3
    other = batch_of(seed=5)
    batch = batch_of() | {"decoder_input_ids": other["input_ids"], "labels": other["labels"]}
    held(model.train(), task_of("seq2seq"), batch, TokenLosses)


@pytest.mark.parametrize("kind", ["Gemma2", "Cohere", "Granite"])
def test_what_follows_the_layer_is_found_out(kind: str) -> None:
    """A soft cap, a scale, a divisor."""
    words = SMALL | ({"final_logit_softcapping": 2.0} if kind == "Gemma2" else {})
    words |= {"Cohere": {"logit_scale": 0.3}, "Granite": {"logits_scaling": 7.0}}.get(kind, {})
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}ForCausalLM")(getattr(transformers, f"{kind}Config")(**words))
    after, passes = after_head(model, output_layer(model))
    assert after is not None and not passes
    assert (after.scale, after.cap) == pytest.approx(
        {"Gemma2": (1.0, 2.0), "Cohere": (0.3, None), "Granite": (1 / 7, None)}[kind]
    )
    held(model.train(), task_of("causal_lm"), batch_of())


def test_most_models_do_nothing_to_their_logits() -> None:
    for family in ("llama", "gpt2", "bert", "t5"):
        model = tiny(family, head="masked_lm" if family == "bert" else None)
        assert after_head(model, output_layer(model)) == (cross_entropy.After(), True)
    bart = tiny("bart")  # adds a bias of zeros
    assert after_head(bart, output_layer(bart)) == (cross_entropy.After(), False)


def test_what_follows_the_layer_and_is_no_such_thing_gets_the_logits() -> None:
    class Bent(transformers.LlamaForCausalLM):
        def forward(self, **words: Any) -> Any:
            outputs = super().forward(**words)
            outputs.logits = outputs.logits.sin()
            return outputs

    held(Bent(tiny("llama").config).train(), task_of("causal_lm"), batch_of(), TokenLogits)


def test_logits_that_see_each_other_are_left_alone() -> None:
    class Mixed(transformers.LlamaForCausalLM):
        def forward(self, **words: Any) -> Any:
            outputs = super().forward(**words)
            outputs.logits = outputs.logits - outputs.logits.mean(1, keepdim=True)
            return outputs

    model = Mixed(tiny("llama").config)
    with pytest.raises(ConfigError, match="not with a Mixed: it mixes the logits of several positions"):
        hang_head(model, task_of("causal_lm"), "on")
    assert hang_head(model, task_of("causal_lm"), "auto") == (
        [], ["all logits are computed (it mixes the logits of several positions)"]
    )  # fmt: skip


def test_an_adapter_on_the_layer_gets_its_positions() -> None:
    model = Lora(rank=4, target_modules=["q_proj", "lm_head"]).adapt(tiny("llama"))  # type: ignore[arg-type]
    held(model, task_of("chat"), batch_of(), TokenLogits)


@pytest.mark.parametrize("loss_type", ["dpo", "simpo", "orpo", "kto"])
def test_preferences_weigh_each_token_otherwise(loss_type: str) -> None:
    pairs = {"wanted": torch.tensor([1, 0, 1, 0])} if loss_type == "kto" else {}
    batch = batch_of(4, **pairs)
    held(tiny("llama"), task_of("preference", loss_type=loss_type), batch)


def test_r_drop_reads_whole_distributions() -> None:
    model, batch = tiny("llama", attention_dropout=0.3), batch_of()
    hang_head(model, task_of("causal_lm"), "on")
    outputs = forward(model, RDrop(task_of("causal_lm"), 1.0), batch)
    assert outputs.logits.shape == (6, 11, 320)


def test_activations_computed_again() -> None:
    model = tiny("llama")
    model.gradient_checkpointing_enable({"use_reentrant": False})
    held(model, task_of("causal_lm"), batch_of())


def test_in_bf16_it_is_as_near_to_fp32_as_all_logits_are() -> None:
    """The products are bf16's in both; softmax, loss and the sums of the head's own gradient are fp32."""
    task, batch = task_of("causal_lm"), batch_of(4, 40)
    exact, gradients = learnt(tiny("llama"), task, batch)
    model = tiny("llama").to(torch.bfloat16)
    plain, plains = learnt(model, task, batch)
    hang_head(model, task, "on")
    found, founds = learnt(model, task, batch)
    assert abs(found - exact) <= 1.1 * abs(plain - exact) + 1e-4 * exact
    for name, gradient in gradients.items():
        off, usual = ((one[name].float() - gradient).norm() / gradient.norm() for one in (founds, plains))
        assert off <= 1.1 * usual, name


def test_a_copy_has_its_own_weights() -> None:
    """What stands for a layer's forward is copied with the layer (reference models, averages)."""
    model, task, batch = tiny("llama"), task_of("causal_lm"), batch_of()
    hang_head(model, task, "on")
    before = learnt(model, task, batch)[0]
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.get_output_embeddings().weight.zero_()  # type: ignore[union-attr]
    assert_close(learnt(other, task, batch)[0], torch.tensor(320.0).log() * task.targets(batch))
    assert_close(learnt(model, task, batch)[0], before)


class Largest(TorchDispatchMode):
    """The most elements that any tensor made inside has."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for one in made if isinstance(made, tuple | list) else [made]:
            if isinstance(one, Tensor):
                self.elements = max(self.elements, one.untyped_storage().nbytes() // one.element_size())
        return made


@pytest.mark.parametrize("train", [True, False])
def test_no_tensor_grows_with_vocabulary_times_tokens(train: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights frozen, as with an adapter; blocks of 16 positions. All logits would be 4 x 500 x 5000 numbers."""
    monkeypatch.setattr(cross_entropy, "BLOCK", 16 * 5000 * 4)
    monkeypatch.setattr(cross_entropy, "TILE", (16, 1000))
    model = tiny("llama", vocab_size=5000, max_position_embeddings=512)
    for name, weight in model.named_parameters():
        weight.requires_grad_("q_proj" in name)
    task, batch = task_of("causal_lm"), batch_of(4, 500)
    hang_head(model, task, "on")
    weight = model.get_output_embeddings().weight.numel()  # type: ignore[union-attr]
    for rows in (1, 4):
        part = {name: one[:rows] for name, one in batch.items()}
        with Largest() as seen:
            learnt(model, task, part) if train else scored(model, task, part)
        assert seen.elements <= max(weight, rows * 4 * 500 * 500)
    assert weight < 4 * 500 * 5000 / 10


def test_plain_hangs_nothing_on_a_model() -> None:
    model = tiny("llama")
    assert quicken(model, task_of("causal_lm"), Speed(mode="plain")).hooks == []
    assert hang_head(tiny("bert"), task_of("sequence_classification", labels=["a", "b"]), "on") == ([], [])


def test_a_model_without_an_output_layer_is_left_alone() -> None:
    with pytest.raises(UnclearError, match="it has no output layer"):
        output_layer(tiny("llama", head="base"))


def capped(folder: Path) -> None:
    """A model with a soft cap behind its output layer, whose losses so leave it by another way."""
    torch.manual_seed(0)
    words = SMALL | {"final_logit_softcapping": 2.0, "attn_implementation": "eager"}
    transformers.Gemma2ForCausalLM(transformers.Gemma2Config(**words)).save_pretrained(folder)
    tokenizer().save_pretrained(folder)


SPLIT = {
    "chat": ("full", {}),
    "chat adapter": ("lora", {}),
    "seq2seq bart": ("lora", {}),
    "chat capped": ("full", {}),
    "preference": ("full", {"loss_type": "orpo"}),
    "masked_lm": ("full", {}),
}


@pytest.mark.launch
def test_two_processes_of_zero3_take_the_same_steps(tmp_path: Path) -> None:
    """The weights are only there inside the layer's own forward and backward."""
    from safetensors.torch import load_file

    from tests.cases import CASES
    from tests.launch import torchrun
    from tests.matrix import Cell
    from tests.test_promises import made

    data, out = made(tmp_path / "data"), tmp_path / "out"
    out.mkdir()
    listed = {}
    for name, (strategy, settings) in SPLIT.items():
        case = name.split()[0]
        cell = Cell(case, "bart" if "bart" in name else CASES[case].families[0], strategy, 2, 2, "zero3").settings(data)
        cell["task"] |= settings
        for mode in ("auto", "plain"):
            listed[f"{name} {mode}"] = cell | {"speed": {"mode": mode}}
        if name == "chat capped":
            capped(data / "gemma2")
            for mode in ("auto", "plain"):
                listed[f"{name} {mode}"]["model"] = str(data / "gemma2")
    (tmp_path / "cases.json").write_text(json.dumps(listed))
    done = torchrun(2, Path(__file__).parents[1] / "steps_worker.py", tmp_path / "cases.json", out)
    assert done.returncode == 0, done.stdout[-4000:]
    for name in SPLIT:
        found, expected = (json.loads((out / f"{name} {mode}.json").read_text()) for mode in ("auto", "plain"))
        assert "failed" not in found, found["failed"]
        for step, other in zip(found["steps"], expected["steps"], strict=True):
            assert step["loss"] == pytest.approx(other["loss"], rel=1e-5)
            assert step["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-4)
        weights, others = (load_file(out / f"{name} {mode}.safetensors") for mode in ("auto", "plain"))
        for place, weight in weights.items():
            assert_close(weight, others[place], rtol=1e-5, atol=1e-5)
