"""Layers without padding: the same numbers as with it, to rounding, whatever the model, and no row knows of another."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from peftkit.config.speed import Speed
from peftkit.errors import ConfigError
from peftkit.kernels import attention
from peftkit.kernels.quicken import quicken
from peftkit.kernels.segments import Rows
from peftkit.kernels.unpadded import disagreement, unpad, why_not
from peftkit.models.recompute import recompute
from peftkit.strategies import Lora
from peftkit.tasks import CausalLM

NEAR = 2e-5
"""Relative, in fp32: other kernels of attention add in another order; over three layers that is some 1e-6."""
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "vocab_size": 100,
}
SHARED = {**SIZES, "num_key_value_heads": 2}
HEADS = {**SHARED, "head_dim": 8}
WINDOW = {"sliding_window": 4}
CALM = {**SIZES, "hidden_dropout_prob": 0, "attention_probs_dropout_prob": 0}
BART = {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "vocab_size": 100, "max_position_embeddings": 64, "dropout": 0,
}  # fmt: skip
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 100, "n_positions": 64}
MODERN = {
    "local_attention": 6,
    "global_attn_every_n_layers": 2,
    "pad_token_id": 0,
    "eos_token_id": 2,
    "bos_token_id": 1,
}
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
UNPADDED: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", SHARED),
    "qwen3": ("Qwen3ForCausalLM", HEADS),
    "mistral, window": ("MistralForCausalLM", SHARED | WINDOW),
    "gemma3, window": ("Gemma3ForCausalLM", HEADS | WINDOW),
    "gpt2": ("GPT2LMHeadModel", GPT2 | {"resid_pdrop": 0, "embd_pdrop": 0, "attn_pdrop": 0}),
    "opt": ("OPTForCausalLM", {**SHARED, "ffn_dim": 48, "word_embed_proj_dim": 32, "dropout": 0}),
    "gpt_neox": ("GPTNeoXForCausalLM", SIZES),
    "mixtral": ("MixtralForCausalLM", SHARED | {"num_local_experts": 4}),
    "qwen3_moe": ("Qwen3MoeForCausalLM", HEADS | MOE),
    "cohere2, window": ("Cohere2ForCausalLM", HEADS | WINDOW),
    "bert": ("BertForMaskedLM", CALM),
    "bert, pooled": ("BertForSequenceClassification", CALM),
    "llama, last token": ("LlamaForSequenceClassification", SHARED | {"pad_token_id": 1}),
    "roberta": ("RobertaForTokenClassification", CALM),
    "albert, one layer": ("AlbertForMaskedLM", CALM | {"embedding_size": 16}),
    "distilbert": ("DistilBertForMaskedLM", {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48, "vocab_size": 100,
                                             "dropout": 0, "attention_dropout": 0}),
    "modernbert, window": ("ModernBertForMaskedLM", SIZES | MODERN | {"cls_token_id": 1, "sep_token_id": 2}),
    "bart": ("BartForConditionalGeneration", BART),
    "bart, targets with a mask": ("BartForConditionalGeneration", BART),
}  # fmt: skip
T5 = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "vocab_size": 100}
NEXT = {"linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4}
PADDED = {
    "bloom": ("BloomForCausalLM", {"hidden_size": 32, "n_layer": 2, "n_head": 4, "vocab_size": 100}, "attention is eager"),
    "deberta": ("DebertaV2ForMaskedLM", {**CALM, "relative_attention": True, "pos_att_type": ["p2c"]}, "attention is eager"),
    "gemma2, softcap": ("Gemma2ForCausalLM", HEADS | WINDOW, "attention is eager"),
    "t5": ("T5ForConditionalGeneration", T5, "position_bias"),
    "mamba": ("MambaForCausalLM", {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 100}, "attention is eager"),
    "qwen3_next": ("Qwen3NextForCausalLM", HEADS | MOE | NEXT | {"layer_types": ["linear_attention", "full_attention"],
                                                                "num_hidden_layers": 2}, "Conv1d"),
}  # fmt: skip


def made(kind: str, sizes: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    cls = getattr(transformers, kind)
    model = cls(cls.config_class(**sizes))
    model.config.use_cache = False
    return model


def batch_for(name: str, model: Any, lengths: tuple[int, ...] = (13, 3, 6, 9)) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 90, (len(lengths), max(lengths)), generator=generator)
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    batch = {"input_ids": ids * mask + (1 - mask), "attention_mask": mask}
    if model.config.is_encoder_decoder:
        batch["decoder_input_ids"] = torch.randint(5, 90, (len(lengths), 6), generator=generator)
    if "mask" in name:
        batch["decoder_attention_mask"] = (torch.arange(6) < torch.tensor([6, 2, 4, 5])[:, None]).long()
    return batch


def outputs_of(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """What the model says of the tokens (or of each row, where it says something of rows)."""
    logits = model(**batch).logits
    mask = batch.get("decoder_attention_mask", torch.ones(logits.shape[:2])) if "decoder_input_ids" in batch else None
    mask = batch["attention_mask"] if mask is None else mask
    return logits[mask.bool()] if logits.shape[:2] == mask.shape else logits


def learnt(model: Any, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    outputs = outputs_of(model, batch)
    loss = (outputs.float().square() * torch.linspace(0.5, 1.5, outputs.shape[-1])).sum()
    loss.backward()
    grads = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    return outputs.detach(), grads


def assert_equal_learnt(one: Any, other: Any) -> None:
    assert one[1].keys() == other[1].keys()
    whole = torch.stack([grad.norm() for grad in one[1].values()]).norm()
    assert (one[0] - other[0]).norm() <= NEAR * one[0].norm()
    for name, grad in one[1].items():
        apart = (grad - other[1][name]).norm()
        # Some gradients are zero but for rounding (a bias of the keys): those are held against all of them.
        assert apart <= NEAR * max(grad.norm(), 1e-2 * whole), name


@pytest.fixture
def unpadded_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens each attention without padding got."""
    calls: list[int] = []
    original = attention.by_segment

    def counted(query: Tensor, *rest: Any) -> Tensor:
        calls.append(query.shape[2])
        return original(query, *rest)

    monkeypatch.setattr(attention, "by_segment", counted)
    return calls


@pytest.mark.parametrize("name", UNPADDED)
@pytest.mark.parametrize("way", ["full", "lora", "checkpointed"])
def test_layers_without_padding_learn_the_same(name: str, way: str, unpadded_calls: list[int]) -> None:
    model = made(*UNPADDED[name])
    model.train()
    if way == "lora":
        model = Lora(rank=2).adapt(model)
    if way == "checkpointed" and model.supports_gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    batch = batch_for(name, model)
    expected = learnt(model, batch)
    before = dict(model.state_dict())
    hung = unpad(model)
    assert why_not(made(*UNPADDED[name])) is None
    found = learnt(model, batch)
    assert_equal_learnt(expected, found)
    assert set(unpadded_calls) <= {31, 17} and unpadded_calls  # the tokens, and with a mask the targets
    assert model.state_dict().keys() == before.keys()
    hung.remove()
    unpadded_calls.clear()
    again = learnt(model, batch)
    assert torch.equal(again[0], expected[0]) and not unpadded_calls


@pytest.mark.parametrize("how", ["selective", "offload"])
@pytest.mark.parametrize("name", ["llama", "bert", "bart, targets with a mask"])
def test_what_is_kept_of_activations_changes_nothing(name: str, how: Any, unpadded_calls: list[int]) -> None:
    model = made(*UNPADDED[name]).train()
    batch = batch_for(name, model)
    expected = learnt(model, batch)
    unpad(model)
    recompute(model, how)
    assert_equal_learnt(expected, learnt(model, batch))
    assert unpadded_calls


@pytest.mark.parametrize("name", ["llama", "gemma3, window", "bert", "bart"])
def test_padding_changes_nothing_and_rows_are_as_one_by_one(name: str) -> None:
    model = made(*UNPADDED[name]).eval()
    batch = batch_for(name, model)
    alone = [{key: value[row : row + 1] for key, value in batch.items()} for row in range(4)]
    lengths = batch["attention_mask"].sum(1).tolist()
    for row, length in zip(alone, lengths, strict=True):
        row["input_ids"], row["attention_mask"] = row["input_ids"][:, :length], row["attention_mask"][:, :length]
    expected = torch.cat([model(**row).logits.flatten(0, 1) for row in alone])
    unpad(model)
    torch.testing.assert_close(outputs_of(model, batch).flatten(0, -2), expected, rtol=NEAR, atol=NEAR)


@pytest.mark.parametrize("name", UNPADDED)
def test_no_bit_of_a_row_hangs_on_another_row(name: str) -> None:
    model = made(*UNPADDED[name]).eval()
    batch = batch_for(name, model)
    unpad(model)
    before = model(**batch).logits
    changed = {key: value.clone() for key, value in batch.items()}
    changed["input_ids"][1, :3] = torch.tensor([7, 8, 9])
    after = model(**changed).logits
    others = [0, 2, 3]
    assert torch.equal(before[others], after[others])
    assert not torch.equal(before[1], after[1])


@pytest.mark.parametrize("name", PADDED)
def test_what_is_not_understood_is_left_padded(name: str) -> None:
    kind, sizes, why = PADDED[name]
    model = made(kind, sizes)
    assert why in (why_not(model) or "")
    quick = quicken(model, CausalLM(), Speed())
    assert any(why in word for word in quick.words) and not quick.proofs
    assert model.config._attn_implementation != attention.NAME
    with pytest.raises(ConfigError, match="layers cannot go without padding"):
        quicken(model, CausalLM(), Speed(unpad="on"))


def test_plain_hangs_nothing_on() -> None:
    model = made(*UNPADDED["llama"])
    assert not quicken(model, CausalLM(), Speed(mode="plain")).hooks
    assert model.config._attn_implementation == "sdpa"


class Mixing(nn.Module):
    """A layer's MLP that adds to each token what stands before it: the row before reaches into the next one."""

    def __init__(self, inside: nn.Module) -> None:
        super().__init__()
        self.inside = inside

    def forward(self, hidden: Tensor) -> Tensor:
        made: Tensor = self.inside(hidden)
        return made + hidden.roll(1, dims=1)


def test_layers_that_mix_tokens_are_found_out() -> None:
    model = made(*UNPADDED["llama"])
    batch = batch_for("llama", model, (6, 3))

    def run() -> Any:
        return model(**batch)

    quick = quicken(model, CausalLM(), Speed())
    run()
    assert model.config._attn_implementation == "sdpa", "what is not proven does nothing"
    quick.prove(run)
    assert model.config._attn_implementation == attention.NAME
    assert any("see no padding" in word for word in quick.words)
    quick.remove()
    model.model.layers[1].mlp = Mixing(model.model.layers[1].mlp)
    quick = quicken(model, CausalLM(), Speed())
    quick.prove(run)
    assert any("tokens differ" in word for word in quick.words) and model.config._attn_implementation == "sdpa"
    with pytest.raises(ConfigError, match="tokens differ"):
        quicken(model, CausalLM(), Speed(unpad="on")).prove(run)


def test_a_proof_leaves_the_model_as_it_was() -> None:
    model = made(*UNPADDED["bert"]).train()
    model.bert.embeddings.eval()
    hung = unpad(model)
    state = torch.get_rng_state()
    batch = batch_for("bert", model)
    assert disagreement(hung, lambda: model(**batch)) is None
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training and not model.bert.embeddings.training
    assert all(weight.grad is None for weight in model.parameters())


def test_a_cache_and_hidden_states_get_padded_rows() -> None:
    model = made(*UNPADDED["llama"]).eval()
    batch = batch_for("llama", model)
    batch["input_ids"], batch["attention_mask"] = batch["input_ids"].flip(1), batch["attention_mask"].flip(1)
    asked = {"max_new_tokens": 5, "do_sample": False, "use_cache": True, "pad_token_id": 1}
    written = model.generate(**batch, **asked)
    states = model(**batch, output_hidden_states=True).hidden_states
    unpad(model)
    assert torch.equal(model.generate(**batch, **asked), written)
    found = model(**batch, output_hidden_states=True).hidden_states
    assert [one.shape for one in found] == [one.shape for one in states]
    assert model.config._attn_implementation == attention.NAME


def test_rows_padded_on_the_left_are_the_same() -> None:
    model = made(*UNPADDED["gemma3, window"]).eval()
    batch = batch_for("gemma3", model)
    batch = {key: value.flip(1) for key, value in batch.items()}
    batch["position_ids"] = (batch["attention_mask"].cumsum(1) - 1).clamp_min(0)
    expected = outputs_of(model, batch)
    unpad(model)
    torch.testing.assert_close(outputs_of(model, batch), expected, rtol=NEAR, atol=NEAR)


def test_two_passes_before_their_backward_passes_keep_apart() -> None:
    model = made(*UNPADDED["llama"]).train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    batches = [batch_for("llama", model), batch_for("llama", model, (5, 8))]

    def both() -> Tensor:
        model.zero_grad()
        sum(outputs_of(model, batch).square().sum() for batch in batches).backward()
        grad: Tensor = model.model.layers[0].mlp.up_proj.weight.grad.clone()
        return grad

    expected = both()
    unpad(model)
    torch.testing.assert_close(both(), expected, rtol=NEAR, atol=NEAR)


def test_dropout_is_as_strong_and_hits_tokens_alone() -> None:
    model = made("GPT2LMHeadModel", GPT2 | {"resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.2}).train()
    batch = batch_for("gpt2", model)

    def spread() -> Tensor:
        torch.manual_seed(3)
        drawn = torch.stack([outputs_of(model, batch).detach() for _ in range(300)])
        return torch.stack([drawn.mean(0), drawn.std(0)])

    expected = spread()
    learnt(model, batch)
    unpad(model)
    found = spread()
    for one, other in zip(expected, found, strict=True):
        assert (one - other).norm() / one.norm() < 0.15  # 300 draws: a mean is known to about 6 % of the spread
    learnt(model, batch)


def test_16_bits_are_as_near_to_32_as_with_padding() -> None:
    model = made(*UNPADDED["llama"]).train()
    batch = batch_for("llama", model)
    exact = learnt(model, batch)[1]
    halved = copy.deepcopy(model).bfloat16()

    def off(model: Any) -> float:
        found = learnt(model, batch)[1]
        return max(float((found[name].float() - exact[name]).norm() / exact[name].norm()) for name in exact)

    padded = off(halved)
    unpad(halved)
    assert off(halved) <= 1.2 * padded  # roundings fall otherwise


def test_layers_left_out_by_chance_leave_rows_padded() -> None:
    model = made("BartForConditionalGeneration", BART | {"encoder_layerdrop": 0.5}).train()
    batch = batch_for("bart", model)
    unpad(model)
    for seed in range(8):
        torch.manual_seed(seed)
        assert model(**batch).logits.shape == (4, 6, 100)


def test_a_copy_of_the_model_works_on_its_own(unpadded_calls: list[int]) -> None:
    model = made(*UNPADDED["llama"]).eval()
    batch = batch_for("llama", model)
    expected = outputs_of(model, batch)
    hung = unpad(model)
    twin = copy.deepcopy(model)
    torch.testing.assert_close(outputs_of(twin, batch), expected, rtol=NEAR, atol=NEAR)
    hung.remove()
    unpadded_calls.clear()
    assert torch.equal(outputs_of(model, batch), expected) and not unpadded_calls


def test_tokens_go_and_come_back_to_their_places() -> None:
    mask = torch.tensor([[1, 1, 0], [1, 1, 1], [0, 1, 0]])
    rows = Rows(mask.bool())
    states = torch.arange(18.0).view(3, 3, 2)
    tokens = rows.gather(states)
    assert tokens.shape == (1, 6, 2) and rows.starts == [0, 2, 5, 6]
    assert torch.equal(rows.scatter(tokens), states * mask[..., None])
    shared = torch.tensor([[10, 11, 12]])
    assert rows.gather(shared).tolist() == [[10, 11, 10, 11, 12, 11]]


@pytest.mark.parametrize("masked", [None, 3])
@pytest.mark.parametrize("keys", [4, 2, 1])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_attention_by_rows_is_torchs_own(masked: int | None, keys: int, scale: float | None) -> None:
    from peftkit.kernels.segments import Segments

    lengths = (5, 1, 7)
    rows = Rows(torch.arange(7) < torch.tensor(lengths)[:, None])
    look: Callable[..., Any] = lambda b, h, q, k: (k <= q) & (k > q - 3)  # noqa: E731
    segments = Segments(rows, True, masked, look, lambda: None)
    torch.manual_seed(0)
    states = [torch.randn(1, 13, heads, 8).transpose(1, 2).double().requires_grad_() for heads in (4, keys, keys)]
    assert torch.autograd.gradcheck(
        lambda *qkv: attention.by_segment(*qkv, segments, 0.0, scale), states, fast_mode=True
    )
    loop = torch.cat(
        [
            torch.nn.functional.scaled_dot_product_attention(
                *(part[:, :, start:end] for part in states), attn_mask=segments.mask(end - start),
                is_causal=segments.mask(end - start) is None, scale=scale, enable_gqa=True,
            )
            for start, end in zip(rows.starts[:-1], rows.starts[1:], strict=True)
        ], 2,
    ).transpose(1, 2)  # fmt: skip
    torch.testing.assert_close(attention.by_segment(*states, segments, 0.0, scale), loop)
