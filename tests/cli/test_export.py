"""`peftkit export`: every exporter's settings are flags, and every mistake is named before anything heavy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from peftkit.cli import export
from peftkit.cli.main import main
from peftkit.errors import ConfigError
from peftkit.exporters import Exporter, Merged
from peftkit.flows import export as flow
from peftkit.flows.place import place_of
from peftkit.run_folder import RunFolder


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """What the flow is called with."""
    (tmp_path / "config.yaml").touch()
    found: dict[str, Any] = {"run": str(tmp_path)}
    monkeypatch.setattr(flow, "export", lambda folder, **words: found.update(words))
    return found


def test_settings_and_limits_reach_the_flow(asked: dict[str, Any]) -> None:
    words = [
        "--to",
        "merged",
        "--to.dtype",
        "bfloat16",
        "--to.max_shard_size=1GB",
        "--max_kl",
        "0.1",
        "--min_same_text",
        "1",
    ]
    assert export.run([*words, asked["run"], "--as", "small", "--force"]) == 0
    assert asked["to"] == Merged(dtype="bfloat16", max_shard_size="1GB")
    assert (asked["bounds"].max_kl, asked["bounds"].min_same_text, asked["bounds"].max_relative_error) == (
        0.1,
        1.0,
        None,
    )
    assert (asked["name"], asked["out"], asked["force"]) == ("small", None, True)


def test_left_alone_it_is_merged(asked: dict[str, Any]) -> None:
    export.run([asked["run"]])
    assert asked["to"] == Merged()
    assert not asked["force"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--to", "megred"], "--to: no exporter is named 'megred' (did you mean 'merged'?)"),
        (["--to.dtype", "bf16"], "--to.dtype takes one of auto, float32, bfloat16, float16; got bf16 (did you mean 'bfloat16'?)"),
        (["--to", "adapter", "--to.dtype", "float16"], "--to.dtype belongs to exporter"),
        (["--to.dtpye", "float16"], "did you mean '--to.dtype'"),
        (["--to.dtype"], "expected one argument"),
        (["--max_kl", "-1"], "--max_kl takes a number above 0 or null; got -1"),
        (["--min_same_text", "2"], "--min_same_text takes a number from 0 to 1 or null; got 2"),
        (["--as", "a", "--out", "b"], "give one of them"),
    ],
)  # fmt: skip
def test_mistakes_are_named(words: list[str], said: str, asked: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as problem:
        export.run([asked["run"], *words])
    assert said in str(problem.value)


def test_its_help_lists_every_setting_of_every_exporter(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "--help"]) == 0
    out = capsys.readouterr().out
    for name in Exporter.registry:
        for field in Exporter.registry[name].model_fields:
            assert f"--to.{field}" in out


def test_a_missing_package_is_told_with_what_installs_it(
    asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Merged, "packages", ("no_such_module",))
    monkeypatch.setattr(Merged, "extra", "onnx")
    with pytest.raises(ConfigError, match=r"--to merged needs no_such_module, .* pip install 'peftkit\[onnx\]'"):
        export.run([asked["run"]])


# Where it goes


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """A run whose merged export is in bfloat16."""
    found = RunFolder(tmp_path)
    found.export("merged").mkdir(parents=True)
    (found.export("merged") / "peftkit.json").write_text('{"exporter": {"name": "merged", "dtype": "bfloat16"}}')
    return found


def test_an_export_with_other_settings_is_not_replaced(folder: RunFolder) -> None:
    with pytest.raises(ConfigError, match=r"dtype bfloat16, not float16.* such as --as merged-2"):
        place_of(folder, Merged(dtype="float16"), None, None)
    assert place_of(folder, Merged(dtype="bfloat16"), None, None) == folder.export("merged")
    assert place_of(folder, Merged(dtype="float16"), "half", None) == folder.export("half")


@pytest.mark.parametrize("name", ["", "..", "a/b", ".hidden"])
def test_a_name_is_that_of_a_folder_beside_the_others(name: str, folder: RunFolder) -> None:
    with pytest.raises(ConfigError, match="the name of a folder under"):
        place_of(folder, Merged(), name, None)


def test_a_folder_of_other_files_is_not_replaced(folder: RunFolder) -> None:
    mine = folder.path / "mine"
    mine.mkdir()
    assert place_of(folder, Merged(), None, mine) == mine
    (mine / "thesis.tex").touch()
    with pytest.raises(ConfigError, match="is no export that could be replaced"):
        place_of(folder, Merged(), None, mine)
