"""The file: each weight in its format, and what it says of itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFReader, LlamaFileType
from gguf.quants import dequantize
from transformers import AutoModelForCausalLM

from peftkit.errors import ExportError
from peftkit.exporters.llama_cpp.vocabulary import vocabulary
from peftkit.exporters.llama_cpp.write import About, write
from tests.exporters.llama_cpp.files import error, opened, rows, small, written
from tests.tiny import EOS, VOCABULARY, tokenizer

LOST = {"f32": 1e-5, "f16": 2e-3, "bf16": 0.01, "q8_0": 0.03, "q4_k_m": 0.15}
"""About twice of what was measured: 4e-7, 1.0e-3, 5.8e-3, 2.1e-2, 9e-2."""


@pytest.mark.parametrize("outtype", LOST)
def test_a_format_loses_what_it_must_and_no_more(outtype: str, tmp_path: Path) -> None:
    model, inputs = small("Llama"), rows(padded=0)
    with torch.no_grad():
        expected = model(**inputs).logits
    found = error(expected, opened(model, tmp_path, outtype)(**inputs).logits)
    assert found < LOST[outtype]
    assert outtype == "f32" or found > LOST[outtype] / 10
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "generation_config.json", "model.gguf"}


@pytest.mark.parametrize("outtype", ["f32", "f16", "bf16", "q8_0"])
def test_weights_are_rounded_to_the_format_and_no_further(outtype: str, tmp_path: Path) -> None:
    model = small("Qwen2")
    file = GGUFReader(written(model, tmp_path, outtype))
    stored = {
        tensor.name: torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy()) for tensor in file.tensors
    }
    whole = model.state_dict()
    found, exact = stored["blk.1.ffn_down.weight"], whole["model.layers.1.mlp.down_proj.weight"]
    if outtype == "q8_0":
        # The scale of a block is a number of fp16.
        step = exact.reshape(64, 3, 32).abs().amax(-1, keepdim=True) / 127
        assert ((found - exact).reshape(64, 3, 32).abs() <= step * 0.58).all()
    else:
        kind = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}[outtype]
        assert torch.equal(found, exact.to(kind).float())
    assert torch.equal(stored["output_norm.weight"], whole["model.norm.weight"])
    assert torch.equal(stored["blk.0.attn_q.bias"].view(-1), whole["model.layers.0.self_attn.q_proj.bias"])
    assert (
        field(file, "general.file_type") == {"f32": 0, "f16": 1, "q8_0": 7, "bf16": LlamaFileType.MOSTLY_BF16}[outtype]
    )


def field(file: GGUFReader, name: str) -> Any:
    return file.fields[name].contents()


def test_transformers_reads_the_same_model_out_of_it(tmp_path: Path) -> None:
    model = small("Llama")
    again = AutoModelForCausalLM.from_pretrained(
        written(model, tmp_path).parent, gguf_file="model.gguf", dtype=torch.float32
    )
    with torch.no_grad():
        torch.testing.assert_close(again(**rows(padded=0)).logits, model(**rows(padded=0)).logits)


def test_it_says_what_it_is(tmp_path: Path) -> None:
    words = vocabulary(tokenizer(), VOCABULARY, {EOS})
    write(small("Llama"), words, tmp_path / "m.gguf", "f16", About("base-lora", "org/base", "apache-2.0"))
    file = GGUFReader(tmp_path / "m.gguf")
    said = {
        "general.architecture": "llama", "general.name": "base-lora", "general.license": "apache-2.0",
        "general.base_model.0.name": "base", "general.base_model.0.organization": "org",
        "general.base_model.0.repo_url": "https://huggingface.co/org/base",
        "llama.context_length": 128, "llama.attention.head_count_kv": 2, "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.eos_token_id": EOS, "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": tokenizer().chat_template,
    }  # fmt: skip
    assert {name: field(file, name) for name in said} == said


def test_a_folder_on_this_machine_is_named_and_not_told(tmp_path: Path) -> None:
    words = vocabulary(tokenizer(), VOCABULARY, {EOS})
    write(small("Llama"), words, tmp_path / "m.gguf", "f16", About("x", "/home/me/models/base"))
    assert b"/home/me" not in (tmp_path / "m.gguf").read_bytes()
    assert field(GGUFReader(tmp_path / "m.gguf"), "general.base_model.0.name") == "base"


def test_a_weight_beyond_fp16_is_refused(tmp_path: Path) -> None:
    model = small("Llama")
    model.model.layers[0].mlp.up_proj.weight.data[0, 0] = 70_000
    with pytest.raises(ExportError, match=r"blk.0.ffn_up.weight has a weight beyond fp16's range; take .*bf16"):
        written(model, tmp_path, "f16")
    assert opened(model, tmp_path, "bf16")(**rows()).logits.isfinite().all()


def test_a_weight_without_a_place_is_refused(tmp_path: Path) -> None:
    model = small("Llama")
    model.model.extra = torch.nn.Linear(2, 2)
    with pytest.raises(ExportError, match=r"llama.cpp's llama has no place for model.extra"):
        written(model, tmp_path)


def test_rows_that_are_no_whole_blocks_are_kept_in_fp16(tmp_path: Path) -> None:
    file = GGUFReader(written(small("Llama", intermediate_size=80), tmp_path, "q8_0"))
    kinds = {tensor.name: tensor.tensor_type.name for tensor in file.tensors}
    assert (kinds["blk.0.ffn_down.weight"], kinds["blk.0.ffn_up.weight"]) == ("F16", "Q8_0")
