"""Where a base is found: a folder, the hub's cache, a GGUF file; and what a folder must hold."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from peftkit.errors import ModelError
from peftkit.flows.merge import merge
from peftkit.merging.base import find_base, read_base
from tests.merging.made import a_base, an_adapter, assert_same, merged_by_peft, opened, weights
from tests.models.test_gguf import write_gguf
from tests.tiny import tiny


def test_a_hub_name_is_looked_for_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    stored = tmp_path / "hub" / "models--some--base"
    base = a_base(stored / "snapshots" / "0123")
    (stored / "refs").mkdir()
    (stored / "refs" / "main").write_text("0123")
    adapter = an_adapter(tmp_path / "adapter", opened(base), target_modules=["q_proj"])
    merge("some/base", [adapter], tmp_path / "out")
    assert_same(tmp_path / "out", merged_by_peft(opened(base), [adapter]))
    with pytest.raises(ModelError, match="--base some/other is no folder here"):
        find_base("some/other")


def test_a_gguf_file_is_converted_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEFTKIT_CACHE", str(tmp_path / "cache"))
    file = write_gguf(tmp_path / "tiny.gguf", tiny("llama"))
    base = find_base(str(file))
    adapter = an_adapter(tmp_path / "adapter", opened(base), target_modules=["q_proj"])
    merge(str(file), [adapter], tmp_path / "out")
    assert_same(tmp_path / "out", merged_by_peft(opened(base), [adapter]))


def test_only_what_transformers_reads_counts(tmp_path: Path) -> None:
    """Other safetensors beside the model's (another library's copy of it) are no part of it."""
    base = a_base(tmp_path / "base", shard="60KB")
    shutil.copy(next(base.glob("model-*.safetensors")), base / "consolidated.safetensors")
    assert read_base(base).tensors.keys() == weights(base).keys()


def test_pickles_are_not_read(tmp_path: Path) -> None:
    base = a_base(tmp_path / "base")
    torch.save(weights(base), base / "pytorch_model.bin")
    (base / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"no weights in safetensors .*a pickle \(.bin\) is not read"):
        read_base(base)
