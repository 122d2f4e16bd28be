"""What `--model` may name, and what is said when it names nothing good."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from peftkit.config.sections import Model
from peftkit.errors import ModelError
from peftkit.models import find as finding
from peftkit.models.find import check_weights, find, hub_words
from tests.tiny import save_tiny


def refusal(path: Path | str, cache: Path) -> str:
    with pytest.raises(ModelError) as refused:
        find(Model(path=str(path)), cache)
    return str(refused.value)


def test_a_folder_is_itself(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "base")
    assert find(Model(path=str(folder)), tmp_path) == str(folder)


def test_a_hub_name_stays_as_it_is(tmp_path: Path) -> None:
    assert find(Model(path="HuggingFaceTB/SmolLM2-135M"), tmp_path) == "HuggingFaceTB/SmolLM2-135M"


@pytest.mark.parametrize("path", ["./base", "/no/such/folder", "a/b/c", "model.gguf", "~/nothing-there"])
def test_a_missing_path_is_named(path: str, tmp_path: Path) -> None:
    assert refusal(path, tmp_path).startswith(f"--model {path}: there is no such file or folder")


def test_a_misspelt_folder_suggests_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "my-model").mkdir()
    assert "(did you mean 'my-model'?)" in refusal(tmp_path / "my-modle", tmp_path)


def test_a_folder_without_configuration_says_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    assert "has no config.json, so it is no model's folder; it holds notes.txt" in refusal(tmp_path, tmp_path)


def test_an_adapter_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").touch()
    assert "holds an adapter, not a model" in refusal(tmp_path, tmp_path)


def test_several_gguf_files_are_a_question(tmp_path: Path) -> None:
    for name in ("small.gguf", "large.gguf"):
        (tmp_path / name).touch()
    assert refusal(tmp_path, tmp_path).endswith("holds several models; name one of large.gguf, small.gguf")


def test_a_file_that_is_no_gguf_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.touch()
    assert "is a file; name the folder" in refusal(file, tmp_path)


def test_a_file_cut_short_is_named(tmp_path: Path) -> None:
    file = save_tiny(tmp_path / "base") / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match=rf"{file} is corrupt or cut short \([\d,]+ bytes"):
        check_weights(file.parent)


def test_a_file_of_something_else_is_named(tmp_path: Path) -> None:
    file = save_tiny(tmp_path / "base") / "model.safetensors"
    file.write_bytes(b"<html>not found</html>")
    with pytest.raises(ModelError, match=f"{file} is corrupt"):
        check_weights(file.parent)


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "base")
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=r"model-00002-of-00002\.safetensors is missing"):
        check_weights(folder)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "base")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="holds a configuration but no weights"):
        check_weights(folder)


def test_an_unreachable_hub_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finding.constants, "ENDPOINT", "http://127.0.0.1:9")  # the discard port: nobody listens
    finding.hub_problem.cache_clear()
    with pytest.raises(ModelError, match="--model some/name is no folder here, and the hub cannot be reached"):
        hub_words(Model(path="some/name"), "some/name")
    finding.hub_problem.cache_clear()


def test_offline_mode_is_obeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finding.constants, "HF_HUB_OFFLINE", True)
    finding.hub_problem.cache_clear()
    with pytest.raises(ModelError, match="HF_HUB_OFFLINE is set"):
        hub_words(Model(path="some/name"), "some/name")
    finding.hub_problem.cache_clear()


def test_a_folder_asks_no_hub(tmp_path: Path) -> None:
    assert hub_words(Model(path=str(tmp_path), revision="v1"), str(tmp_path)) == {"trust_remote_code": False}
