"""The words of `peftkit serve`: mistakes are told before anything is loaded."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from peftkit.cli.main import main
from peftkit.cli.serve import named
from peftkit.errors import ConfigError


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "required: FOLDER"),
        (["a", "--batch", "0"], "--batch 0: at least 1"),
        (["a", "--max-queue", "0"], "--max-queue 0: at least 1"),
        (["a", "--port", "70000"], "--port 70000: at most 65535"),
        (["a", "--port", "-1"], "--port -1: at least 0"),
        (["a", "--timeout", "soon"], "--timeout takes a time such as 90m"),
        (["a", "--max-body", "much"], "--max-body takes an amount such as 10GB"),
        (["a", "--max-bodies", "1"], "did you mean '--max-body'?"),
        (["nowhere"], "there is nothing"),
        (["x=nowhere", "nowhere/run", "run=other"], "both named run"),
    ],
)
def test_mistakes_are_told(words: list[str], said: str, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["serve", *words, *([] if "--port" in words else ["--port", "0"])]) == 2
    assert said in capfd.readouterr().err.replace("\n", " ")


def test_names_are_those_of_the_runs() -> None:
    words = [
        "runs/a",
        "runs/b/export/adapter",
        "runs/c/checkpoints/step-000100",
        "other/merged",
        "d=runs/a/export/merged",
    ]
    assert list(named(words)) == ["a", "b", "c", "merged", "d"]
    assert named(["d=x=y"]) == {"d": Path("x=y")}
    with pytest.raises(ConfigError, match="both named a; name them"):
        named(["runs/a", "runs/a/export/merged"])
    for word in ("=runs/a", "a="):
        with pytest.raises(ConfigError, match="wants FOLDER or NAME=FOLDER"):
            named([word])


def test_a_port_that_is_taken_is_named(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", str(tmp_path), "--port", str(port)]) == 2
    assert f"--port {port}: Address already in use; --port 0 takes a free one" in capfd.readouterr().err.replace(
        "\n", " "
    )


def test_what_is_not_installed_is_named(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "fastapi", None)
    assert main(["serve", str(tmp_path)]) == 2
    assert "pip install 'peftkit[serve]'" in capfd.readouterr().err
