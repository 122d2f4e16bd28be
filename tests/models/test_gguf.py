"""A .gguf file becomes the ordinary model that it was written from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFWriter
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, AutoTokenizer

from peftkit.config.sections import Model
from peftkit.errors import ModelError
from peftkit.models.find import find
from tests.tiny import BOS, EOS, HEADS, LAYERS, MLP, PAD, POSITIONS, tiny, tokenizer

PARTS = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip
WHOLE = {"model.embed_tokens.weight": "token_embd", "model.norm.weight": "output_norm", "lm_head.weight": "output"}


def write_gguf(file: Path, model: Any) -> Path:
    """A tiny Llama and the tokenizer in GGUF, unquantised."""
    writer = GGUFWriter(file, "llama")
    config = model.config
    writer.add_context_length(POSITIONS)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(MLP)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    add_words(writer, config.vocab_size)
    for name, tensor in model.state_dict().items():
        writer.add_tensor(gguf_name(name), interleaved(name, tensor, config).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def add_words(writer: GGUFWriter, size: int) -> None:
    vocabulary = sorted(tokenizer().get_vocab().items(), key=lambda entry: entry[1])
    words = [word for word, _ in vocabulary] + [f"<unused{number}>" for number in range(size - len(vocabulary))]
    special = set(tokenizer().added_tokens_encoder)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(words)
    writer.add_token_types([3 if word in special or word.startswith("<unused") else 1 for word in words])
    writer.add_token_merges(merges())
    writer.add_bos_token_id(BOS)
    writer.add_eos_token_id(EOS)
    writer.add_pad_token_id(PAD)
    writer.add_chat_template(tokenizer().chat_template)


def merges() -> list[str]:
    import json

    pairs = json.loads(tokenizer().backend_tokenizer.to_str())["model"]["merges"]
    return [pair if isinstance(pair, str) else " ".join(pair) for pair in pairs]


def gguf_name(name: str) -> str:
    if name in WHOLE:
        return f"{WHOLE[name]}.weight"
    _, _, layer, part = name.split(".", 3)
    return f"blk.{layer}.{PARTS[part.removesuffix('.weight')]}.weight"


def interleaved(name: str, tensor: torch.Tensor, config: Any) -> torch.Tensor:
    """GGUF keeps the rotary halves of queries and keys interleaved."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for part, number in heads.items():
        if part in name:
            rows, columns = tensor.shape
            halves = tensor.reshape(number, 2, rows // number // 2, columns)
            return halves.swapaxes(1, 2).reshape(rows, columns).contiguous()
    return tensor.contiguous()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", tiny("llama"))


def test_the_converted_model_is_the_one_that_was_written(file: Path, tmp_path: Path) -> None:
    folder = find(Model(path=str(file)), tmp_path)
    assert_close(AutoModelForCausalLM.from_pretrained(folder).state_dict(), tiny("llama").state_dict())
    read, text = AutoTokenizer.from_pretrained(folder), "What is the capital of France?"
    assert read(text)["input_ids"] == tokenizer()(text)["input_ids"]
    assert (read.chat_template, read.eos_token_id) == (tokenizer().chat_template, EOS)


def test_a_folder_with_nothing_else_stands_for_its_file(file: Path, tmp_path: Path) -> None:
    assert find(Model(path=str(file.parent)), tmp_path) == find(Model(path=str(file)), tmp_path)


def test_it_is_converted_once(file: Path, tmp_path: Path) -> None:
    weights = Path(find(Model(path=str(file)), tmp_path)) / "model.safetensors"
    first = weights.stat().st_mtime_ns
    find(Model(path=str(file)), tmp_path)
    assert weights.stat().st_mtime_ns == first


def test_another_content_is_another_model(file: Path, tmp_path: Path) -> None:
    other = write_gguf(tmp_path / "tiny.gguf", tiny("llama", seed=1))
    assert find(Model(path=str(other)), tmp_path) != find(Model(path=str(file)), tmp_path)


def test_a_broken_file_is_one_message_and_leaves_no_model(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + b"\0" * 100)
    with pytest.raises(ModelError, match=f"--model {broken}: cannot be read as a GGUF model"):
        find(Model(path=str(broken)), tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("*.safetensors"))
