"""`peftkit push` to a hub on this machine: what arrives is what was certified, and nothing else leaves."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from peftkit.cli.main import main
from peftkit.evaluation.certificate import Certificate, files_of
from tests.evaluation.test_certificate import certificate
from tests.flows.hub import Hub, Repository, a_hub
from tests.forked import free_port
from tests.tiny import save_tiny

REPO = "me/tuned"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as an export leaves it, certified as it lies there."""
    folder = save_tiny(tmp_path_factory.mktemp("push") / "merged", "llama")
    (folder / "peftkit.json").write_text('{"exporter": {"name": "merged"}}')
    (folder / "README.md").write_text("---\nlibrary_name: transformers\n---\n\n# Tuned\n")
    certificate(files_of(folder)).write(folder)
    return folder


@pytest.fixture
def export(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "merged"))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with a_hub() as found:
        monkeypatch.setenv("HF_ENDPOINT", found.url)
        monkeypatch.setenv("HF_TOKEN", found.token)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        # Its other protocol (Xet) is a compiled client of a service of its own; with HF_HUB_DISABLE_XET files go by LFS.
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        yield found


def sent(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_arrives_is_what_was_certified(export: Path, hub: Hub, capfd: pytest.CaptureFixture[str]) -> None:
    (export / ".cache").mkdir()
    (export / ".cache" / "log.txt").write_text("nothing of the export")
    assert main(["push", str(export), REPO]) == 0
    out, err = capfd.readouterr()
    repository = hub.repositories[REPO]
    assert hub.said("POST", "/api/repos/create") == [
        {"name": "tuned", "organization": "me", "visibility": "private", "type": "model"}
    ]
    assert repository.private
    arrived = {name: content for name, content in repository.files.items() if name != ".gitattributes"}
    shutil.rmtree(export / ".cache")
    assert arrived == sent(export)
    for name, digest in Certificate.read(export).files.items():
        assert hashlib.sha256(arrived[name]).hexdigest() == digest
    assert {"model.safetensors", "tokenizer.json"} == repository.large
    assert f"made {hub.url}/{REPO}, private" in out and "as they were certified" in out
    assert hub.token not in out + err
    assert not any(hub.token in json.dumps(content, default=repr) for _, _, content in hub.asked)


def test_again_nothing_large_is_sent_twice_and_a_new_card_arrives(export: Path, hub: Hub) -> None:
    assert main(["push", str(export), REPO]) == 0
    (export / "README.md").write_text("---\nlicense: mit\n---\n\n# Mine\n")
    assert main(["push", str(export), REPO, "--public"]) == 0
    assert len(hub.said("PUT", "/upload/")) == 2
    assert hub.repositories[REPO].files["README.md"].endswith(b"# Mine\n")
    assert hub.repositories[REPO].private  # what is there stays as private as it was
    assert hub.said("POST", "/commit/")[1][0]["value"]["parentCommit"]


def test_a_dry_run_sends_nothing_and_needs_no_token(
    export: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    assert main(["push", str(export), REPO, "--dry_run"]) == 0
    said = capfd.readouterr().out
    for words in (
        "model.safetensors",
        "peftkit.json",
        "9 files",
        f"{hub.url}/{REPO}",
        "made private if it is not there",
    ):
        assert words in said, words
    assert not hub.asked


def test_public_only_if_asked_for(export: Path, hub: Hub, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["push", str(export), REPO, "--public"]) == 0
    assert not hub.repositories[REPO].private
    assert main(["push", str(export), REPO]) == 2
    assert "is there and public; say --public" in capfd.readouterr().err


def test_a_folder_that_is_not_what_was_certified_stays_here(
    export: Path, hub: Hub, capfd: pytest.CaptureFixture[str]
) -> None:
    def refused(code: int, *more: str) -> str:
        assert main(["push", str(export), REPO, *more]) == code
        assert not hub.asked
        said = capfd.readouterr().err
        assert "Traceback" not in said
        return said

    whole = (export / "model.safetensors").read_bytes()
    (export / "model.safetensors").write_bytes(whole[:-1] + b"\0")
    assert "model.safetensors changed since the export was verified" in refused(1, "--force")
    (export / "model.safetensors").write_bytes(whole)
    (export / "notes.log").write_text("mine")
    assert "notes.log was not there when" in refused(1)
    (export / "notes.log").unlink()
    (export / "README.md").rename(export.parent / "card")
    (export / "README.md").symlink_to(export.parent / "card")
    assert "README.md is a link" in refused(1)
    (export / "README.md").unlink()
    (export / "README.md").write_text(f"mine, {hub.token}")
    assert "README.md holds what looks like a token or a password" in refused(1)
    (export / "README.md").write_text("see https://me:secret-words@host/x")
    assert "README.md holds what looks like a token or a password" in refused(1)
    (export / "certificate.json").unlink()
    assert "has no certificate.json" in refused(1)
    export.rename(export.with_name("merged.partial"))
    assert main(["push", str(export.with_name("merged.partial")), REPO, "--force"]) == 1
    assert "never finished" in capfd.readouterr().err
    for name in ("tuned", "me/tuned/more", "../x", "me/tu ned", ""):
        assert main(["push", str(export), name]) == 2
        assert "is no name on the hub" in capfd.readouterr().err


def test_by_force_a_folder_without_a_certificate_goes(
    export: Path, hub: Hub, capfd: pytest.CaptureFixture[str]
) -> None:
    (export / "certificate.json").unlink()
    assert main(["push", str(export), REPO, "--force"]) == 0
    assert "has no certificate; it is uploaded because of --force" in capfd.readouterr().out
    assert "model.safetensors" in hub.repositories[REPO].files


def test_other_content_is_not_mixed_with_it(export: Path, hub: Hub, capfd: pytest.CaptureFixture[str]) -> None:
    hub.repositories[REPO] = Repository(True, {".gitattributes": b"", "pytorch_model.bin": b"old"})
    assert main(["push", str(export), REPO]) == 2
    assert "holds other files (pytorch_model.bin)" in capfd.readouterr().err
    assert not hub.said("POST", "/commit/")
    assert main(["push", str(export), REPO, "--replace"]) == 0
    assert set(hub.repositories[REPO].files) == {".gitattributes", *sent(export)}


def test_a_file_that_was_left_out_there_is_noticed(export: Path, hub: Hub, capfd: pytest.CaptureFixture[str]) -> None:
    hub.ignored = {"tokenizer.json"}
    assert main(["push", str(export), REPO]) == 1
    assert f"{REPO} does not hold tokenizer.json as they were sent" in capfd.readouterr().err


def test_a_passing_failure_is_tried_again(export: Path, hub: Hub) -> None:
    hub.fails = {"/upload/": [503]}
    assert main(["push", str(export), REPO]) == 0
    assert hub.repositories[REPO].files["model.safetensors"] == (export / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("part", "status", "told"),
    [
        ("/api/models", 401, "it does not know the token"),
        ("/api/repos/create", 403, "the token may not write there"),
        ("/api/repos/create", 409, "somebody else has just changed it"),
        ("/commit/", 413, "it is too large for it"),
    ],
)
def test_what_the_hub_refuses_is_told_in_a_sentence(
    part: str, status: int, told: str, export: Path, hub: Hub, capfd: pytest.CaptureFixture[str]
) -> None:
    hub.fails = {part: [status] * 9}
    assert main(["push", str(export), REPO]) == 1
    out, err = capfd.readouterr()
    assert f"{hub.url} refuses {REPO} with {status}" in err and told in err
    assert hub.token not in out + err and "Traceback" not in err


def test_a_wrong_token_no_token_and_no_network(
    export: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    wrong = "hf_another_0123456789abcdefgh"
    monkeypatch.setenv("HF_TOKEN", wrong)
    assert main(["push", str(export), REPO]) == 1
    said = capfd.readouterr().err
    assert "it does not know the token" in said and wrong not in said
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{free_port()}")
    assert main(["push", str(export), REPO]) == 1
    said = capfd.readouterr().err
    assert "cannot be reached" in said and "HF_ENDPOINT" in said and wrong not in said
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert main(["push", str(export), REPO]) == 2
    assert "HF_HUB_OFFLINE is set" in capfd.readouterr().err
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    assert main(["push", str(export), REPO]) == 2
    assert "no token of the hub: set HF_TOKEN" in capfd.readouterr().err
