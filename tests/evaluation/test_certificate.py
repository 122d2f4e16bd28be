"""A certificate speaks of every file beside it, and of itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from peftkit.errors import ExportError
from peftkit.evaluation.certificate import CARD, CERTIFICATE, Certificate, Figures, Limits, files_of, weight_files

FIGURES = Figures(kl=0, top1=1, top1_decided=1, relative_error=0, max_difference=0, scale=1)
LIMITS = Limits(kl=1, top1_decided=1, relative_error=1, max_difference=1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("model.safetensors", "config.json", "chat_template.jinja", CARD, "below/vocabulary.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    certificate(files_of(tmp_path)).write(tmp_path)
    return tmp_path


def certificate(files: dict[str, str]) -> Certificate:
    known = {"exporter": "merged", "base": "a/base", "rows": 4, "positions": 200, "prompts": 0, "stored": "float32"}
    return Certificate(**known, figures=FIGURES, limits=LIMITS, files=files, versions={})


def test_it_speaks_of_every_file(folder: Path) -> None:
    read = Certificate.read(folder)
    assert set(read.files) == {"model.safetensors", "config.json", "chat_template.jinja", CARD, "below/vocabulary.txt"}
    assert read.format == 2


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "chat_template.jinja", "below/vocabulary.txt"])
def test_a_file_that_changed_or_went_is_named(name: str, folder: Path) -> None:
    (folder / name).write_text("other")
    with pytest.raises(ExportError, match=f"{name} changed since the export was verified"):
        Certificate.read(folder)
    (folder / name).unlink()
    with pytest.raises(ExportError, match=f"{name} is missing"):
        Certificate.read(folder)


def test_a_file_that_came_is_named_and_what_tools_leave_is_none(folder: Path) -> None:
    (folder / ".cache").mkdir()
    (folder / ".cache" / "hub.lock").touch()
    (folder / ".gitattributes").touch()
    assert Certificate.load(folder).changed(folder) == []
    (folder / "adapter_model.safetensors").touch()
    with pytest.raises(ExportError, match=r"adapter_model\.safetensors was not there when the export was verified"):
        Certificate.read(folder)


def test_people_may_write_into_the_card(folder: Path) -> None:
    (folder / CARD).write_text("A better one.")
    assert Certificate.load(folder).changed(folder) == []


def test_one_that_was_edited_is_refused(folder: Path) -> None:
    held = json.loads((folder / CERTIFICATE).read_text())
    held["figures"]["kl"] = 0.1
    (folder / CERTIFICATE).write_text(json.dumps(held))
    with pytest.raises(ExportError, match="was edited"):
        Certificate.load(folder)


@pytest.mark.parametrize(
    ("text", "said"),
    [(None, "no readable certificate"), ("{", "no readable certificate"), ("[]", "no readable certificate"),
     ('{"format": 99}', "format 99; this peftkit reads up to 2"), ('{"format": "x"}', "no readable certificate"),
     ("{}", "no readable certificate: exporter: Field required")],
)  # fmt: skip
def test_what_cannot_be_read_is_told(text: str | None, said: str, folder: Path) -> None:
    (folder / CERTIFICATE).unlink()
    if text is not None:
        (folder / CERTIFICATE).write_text(text)
    with pytest.raises(ExportError, match=said):
        Certificate.load(folder)


def test_one_of_format_1_is_read_and_speaks_of_weights_alone(folder: Path) -> None:
    old = certificate(weight_files(folder)).model_dump(mode="json", exclude_defaults=True)
    assert not {"format", "digest"} & set(old)
    (folder / CERTIFICATE).write_text(json.dumps(old))
    (folder / "config.json").write_text("{}")
    assert Certificate.read(folder).format == 1
    (folder / "model.safetensors").write_bytes(b"changed")
    with pytest.raises(ExportError, match=r"model\.safetensors changed"):
        Certificate.read(folder)


def test_secrets_do_not_reach_it(folder: Path) -> None:
    written = certificate({}).model_copy(update={"base": "https://hub/?token=hf_abcdefghijklmnop"}).write(folder)
    assert "hf_abcdefghijklmnop" not in (folder / CERTIFICATE).read_text()
    assert Certificate.load(folder) == written
