"""What `peftkit merge` wrote is what its base and its adapters give, or verify says what is not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from peftkit.cli.main import main
from peftkit.flows.merge import merge
from peftkit.flows.verify import Asked, verify
from tests.merging.made import two_adapters


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = two_adapters(tmp_path_factory.mktemp("remerge"))
    merge(str(folder / "base"), [folder / "adapter"], folder / "merged")
    return folder


def copied(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made / "merged", tmp_path / "copy")


@pytest.mark.parametrize("how", [{}, {"dtype": "bfloat16", "max_shard_size": "50KB"}, {"quantized": "nf4"}])
def test_a_good_one_is_verified(how: dict[str, str], made: Path, tmp_path: Path) -> None:
    merge(str(made / "base"), [made / "adapter"], tmp_path / "out", **how)  # type: ignore[arg-type]
    assert verify(tmp_path / "out", Asked()).problems == []


def test_so_are_several_adapters(made: Path, tmp_path: Path) -> None:
    adapters = [made / "adapter", made / "second"]
    merge(
        str(made / "base"), adapters, tmp_path / "out", combine="dare_linear", weights=[0.7, 0.3], density=0.5, seed=3
    )
    verdict = verify(tmp_path / "out", Asked())
    assert verdict.ok
    assert [check.name for check in verdict.checks][-2:] == ["weights", "tokenizer, templates"]


def flipped(folder: Path, made: Path) -> str:
    file = folder / "model.safetensors"
    held = bytearray(file.read_bytes())
    held[-5] ^= 1
    file.write_bytes(held)
    return "differs"


def cut(folder: Path, made: Path) -> str:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    return "model.safetensors"


def renamed(folder: Path, made: Path) -> str:
    file = folder / "model.safetensors"
    held = load_file(file)
    held["model.norm.other"] = held.pop("model.norm.weight")
    save_file(held, file)
    return "model.norm.weight is missing"


def another_setting(folder: Path, made: Path) -> str:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "rms_norm_eps": 0.1}))
    return "config.json: rms_norm_eps is another"


def no_setting(folder: Path, made: Path) -> str:
    (folder / "config.json").write_text("{")
    return "config.json cannot be read"


def another_template(folder: Path, made: Path) -> str:
    file = folder / "chat_template.jinja"
    file.write_text(file.read_text() + " ")
    return "chat_template.jinja is another"


def no_tokenizer(folder: Path, made: Path) -> str:
    (folder / "tokenizer.json").unlink()
    return "tokenizer.json is missing"


def another_adapter(folder: Path, made: Path) -> str:
    other = shutil.copytree(made / "adapter", folder.parent / "adapter")
    held = load_file(other / "adapter_model.safetensors")
    save_file({name: value * 1.1 for name, value in held.items()}, other / "adapter_model.safetensors")
    file = folder / "merge.json"
    told = json.loads(file.read_text())
    told["adapters"][0]["folder"] = str(other)
    file.write_text(json.dumps(told))
    return "adapter_model.safetensors changed since the merge"


HARMS = [flipped, cut, renamed, another_setting, no_setting, another_template, no_tokenizer, another_adapter]


@pytest.mark.parametrize("harm", HARMS)
def test_what_is_wrong_is_named(
    harm: Callable[[Path, Path], str], made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copied(made, tmp_path)
    told = harm(folder, made)
    assert any(told in problem for problem in verify(folder, Asked()).problems)
    assert main(["verify", str(folder)]) == 1
    assert "NOT VERIFIED" in capsys.readouterr().out


def test_another_base_is_refused(made: Path, tmp_path: Path) -> None:
    base = shutil.copytree(made / "base", tmp_path / "base")
    file = sorted(base.glob("*.safetensors"))[0]
    save_file({name: torch.zeros_like(value) for name, value in load_file(file).items()}, file, {"format": "pt"})
    problems = verify(copied(made, tmp_path), Asked(base=str(base))).problems
    assert any(f"{file} changed since the merge" in problem for problem in problems)


@pytest.mark.parametrize("said", ["[]", "{", '{"base": {"folder": "x", "sha256": []}, "adapters": []}'])
def test_a_merge_that_names_nothing_is_told(
    said: str, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copied(made, tmp_path)
    (folder / "merge.json").write_text(said)
    assert main(["verify", str(folder)]) == 2
    assert "merge.json cannot be read" in capsys.readouterr().err
