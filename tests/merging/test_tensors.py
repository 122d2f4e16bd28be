"""Safetensors a tensor at a time: the library reads what is written here, and damage is seen."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from peftkit.errors import ModelError
from peftkit.merging import tensors
from peftkit.merging.tensors import DTYPES, Shard, stored_in


def some(count: int = 5) -> dict[str, torch.Tensor]:
    numbers = torch.Generator().manual_seed(0)
    made = {str(dtype): (100 * torch.rand(3, 5, generator=numbers)).to(dtype) for dtype in DTYPES.values()}
    return {
        **made,
        "empty": torch.empty(0, 4),
        "scalar": torch.tensor(3.5),
        "long": torch.randn(999, generator=numbers),
    }


def write(path: Path, made: dict[str, torch.Tensor]) -> None:
    with Shard(path, ((name, one.dtype, tuple(one.shape)) for name, one in made.items())) as shard:
        for one in made.values():
            shard.put(one)


@pytest.mark.parametrize("at_once", [4096, 1 << 22])
def test_the_library_reads_what_is_written(at_once: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensors, "AT_ONCE", at_once)
    made = dict(sorted(some().items(), key=lambda item: -item[1].dtype.itemsize))
    write(tmp_path / "a.safetensors", made)
    found = load_file(tmp_path / "a.safetensors")
    assert found.keys() == made.keys()
    assert all(
        torch.equal(found[name].view(torch.uint8), made[name].view(torch.uint8)) for name in made if made[name].ndim
    )


def test_what_the_library_writes_is_read_and_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensors, "AT_ONCE", 4096)
    made = {name: one for name, one in some().items() if one.ndim} | {"large": torch.randn(70, 70)}
    save_file(made, tmp_path / "a.safetensors", metadata={"format": "pt"})
    stored = stored_in(tmp_path / "a.safetensors")
    assert all(torch.equal(one.read().view(torch.uint8), made[name].view(torch.uint8)) for name, one in stored.items())
    with Shard(tmp_path / "b.safetensors", ((name, one.dtype, one.shape) for name, one in stored.items())) as shard:
        for one in stored.values():
            shard.copy(one)
    again = load_file(tmp_path / "b.safetensors")
    assert all(torch.equal(again[name].view(torch.uint8), made[name].view(torch.uint8)) for name in made)


def header(change: Callable[[dict], None]) -> Callable[[bytes], bytes]:
    def changed(data: bytes) -> bytes:
        length = int.from_bytes(data[:8], "little")
        held = json.loads(data[8 : 8 + length])
        change(held)
        text = json.dumps(held).encode()
        return len(text).to_bytes(8, "little") + text + data[8 + length :]

    return changed


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-1],
        lambda data: data + b"x",
        lambda data: data[:5],
        lambda data: b"",
        lambda data: b"\xff" * 8 + data[8:],
        lambda data: data[:9] + b"\xff" + data[10:],
        lambda data: (4).to_bytes(8, "little") + b"[1] " + data,
        header(lambda held: held["a"].update(dtype="F99")),
        header(lambda held: held["a"].update(shape=[2, 3])),
        header(lambda held: held["a"].update(shape=[-1, -4])),
        header(lambda held: held["a"].update(data_offsets=[4, 20])),
        header(lambda held: held["a"].pop("shape")),
        header(lambda held: held.update(b=held["a"])),
    ],
)
def test_a_damaged_file_is_refused_in_a_sentence(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    save_file({"a": torch.zeros(4)}, file)
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(ModelError, match=r"a.safetensors is corrupt or cut short"):
        stored_in(file)
