"""The merge by torch alone: bit for bit PEFT's, and left to PEFT what it cannot tell."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from peftkit.errors import ExportError, ModelError
from peftkit.flows.merge import merge
from peftkit.merging import direct
from peftkit.merging.adapter import read_adapter
from peftkit.merging.base import read_base
from tests.merging.made import a_base, an_adapter, assert_as_peft, assert_same, merged_by_peft, opened, weights

PLAIN: list[dict[str, Any]] = [
    {"target_modules": "all-linear"},
    {"target_modules": ["q_proj", "v_proj"], "use_rslora": True},
    {"target_modules": "all-linear", "lora_alpha": 12},
    {"target_modules": r".*layers\.1\..*(q|up)_proj"},
    {
        "target_modules": ["q_proj", "up_proj"],
        "rank_pattern": {"up_proj": 7},
        "alpha_pattern": {"layers.1.self_attn.q_proj": 3},
    },
]


@pytest.mark.parametrize("settings", PLAIN)
def test_it_is_pefts_merge_to_the_last_bit(settings: dict[str, Any], tmp_path: Path) -> None:
    base = a_base(tmp_path / "base")
    adapter = read_adapter(an_adapter(tmp_path / "adapter", opened(base), **settings))
    assert direct.plan(read_base(base), adapter, None).changed  # and nothing was left to PEFT
    assert_as_peft(tmp_path, **settings)


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_biases_that_trained_take_the_bases_place(bias: str, tmp_path: Path) -> None:
    a_base(tmp_path / "base", "qwen")
    assert_as_peft(tmp_path, target_modules=["q_proj"], bias=bias)


def test_a_16bit_base_is_merged_in_fp32_and_rounded_once(tmp_path: Path) -> None:
    base = a_base(tmp_path / "base")
    opened(base, dtype=torch.bfloat16).save_pretrained(base)
    before = weights(base)
    adapter = an_adapter(tmp_path / "adapter", opened(base), target_modules=["up_proj"])
    merge(str(base), [adapter], tmp_path / "out")
    assert_same(tmp_path / "out", merged_by_peft(opened(base), [adapter]))
    name = "model.layers.0.mlp.up_proj.weight"
    held = {
        key.rsplit(".mlp.up_proj.")[-1]: one.read()
        for key, one in read_adapter(adapter).tensors.items()
        if "layers.0" in key
    }
    exact = before[name].float() + 2 * (held["lora_B.weight"].float() @ held["lora_A.weight"].float())
    assert torch.equal(weights(tmp_path / "out")[name], exact.bfloat16())


@pytest.mark.parametrize("scale", [1.0, 2.0, 3.0, 0.5, 0.1])
def test_the_order_of_the_scaling_changes_no_bit(scale: float) -> None:
    numbers = torch.Generator().manual_seed(0)
    a, b = torch.randn(16, 300, generator=numbers), torch.randn(200, 16, generator=numbers)
    out = torch.empty(200, 300)
    direct.scaled_product(a, b, scale, out)
    assert torch.equal(out, (b @ a) * scale)


def test_it_imports_neither_peft_nor_transformers(tmp_path: Path) -> None:
    base = a_base(tmp_path / "base")
    adapter = an_adapter(tmp_path / "adapter", opened(base), target_modules="all-linear")
    code = "import sys; from peftkit.cli.main import main; main(sys.argv[1:]); print(*sys.modules, file=sys.stderr)"
    words = ["merge", "--base", str(base), "--adapter", str(adapter), "--out", str(tmp_path / "out")]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
    assert not {"peft", "transformers", "pydantic", "safetensors", "accelerate"} & set(done.stderr.split())
    assert "14 tensors change, 7 stay as they are" in done.stdout
    assert (tmp_path / "out" / "config.json").is_file()


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("gpt2", {"target_modules": ["c_proj"]}),  # square weights, stored transposed
        ("llama", {"target_modules": ["embed_tokens"]}),
        ("llama", {"target_modules": ["lm_head"]}),  # perhaps tied
        ("llama", {"target_modules": ["q_proj"], "use_dora": True}),
        ("llama", {"target_modules": ["q_proj"], "modules_to_save": ["norm"]}),
        ("llama", {"target_modules": ["q_proj"], "trainable_token_indices": [3]}),
        ("llama", {"target_modules": ["q_proj"], "exclude_modules": ["layers.0.self_attn.q_proj"]}),
        ("llama", {"target_modules": ["q_proj"], "init_lora_weights": "pissa"}),
    ],
)
def test_what_names_and_shapes_do_not_tell_is_left_to_peft(
    family: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    base = a_base(tmp_path / "base", family)
    adapter = an_adapter(tmp_path / "adapter", opened(base), **settings)
    with pytest.raises(direct.Beyond):
        direct.plan(read_base(base), read_adapter(adapter), None)


def test_conv1d_is_only_where_it_is_known_to_be() -> None:
    """A new model of transformers with weights stored transposed must be added to the list."""
    models = Path(transformers.__file__).parent / "models"
    found = {file.parent.name for file in models.glob("*/modeling_*.py") if "import Conv1D" in file.read_text()}
    assert found == {name.replace("openai-gpt", "openai") for name in direct.TRANSPOSED}


def test_an_adapter_of_a_larger_base_is_refused(tmp_path: Path) -> None:
    base = a_base(tmp_path / "base")
    other = a_base(tmp_path / "other", hidden_size=48)
    adapter = an_adapter(tmp_path / "adapter", opened(other), target_modules=["q_proj"])
    with pytest.raises(
        ModelError, match=r"belongs to another base: .*q_proj.weight of shape \[48, 48\].* is \[32, 32\]"
    ):
        direct.plan(read_base(base), read_adapter(adapter), None)


def test_an_overflow_is_no_merge() -> None:
    with pytest.raises(ExportError, match="x is not finite in float16"):
        direct.rounded(torch.tensor([1.0, 70000.0]), torch.float16, "x")
    with pytest.raises(ExportError, match="not finite"):
        direct.rounded(torch.tensor([1.0, float("nan")]), torch.float32, "x")
