"""Secrets out of texts and files; what is no secret stays."""

from __future__ import annotations

from pathlib import Path

import pytest

from peftkit.redact import redact, redact_all, redact_file

TOKEN = "a-token/with+signs"  # noqa: S105
SECRET_NAMES = (
    "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN",
    "PGPASSWORD", "MYSQL_PWD", "OPENAI_APIKEY", "DB_CREDENTIALS", "my_secret", "KEY", "GITHUB_PAT", "SSH_PASSPHRASE",
)  # fmt: skip
PLAIN_NAMES = ("TOKENIZERS_PARALLELISM", "KEYBOARD", "MONKEY", "PATH_TO_ROWS", "OMP_NUM_THREADS", "KEYRING_BACKEND")


@pytest.mark.parametrize("name", SECRET_NAMES)
def test_a_variable_that_is_called_a_secret_is_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, TOKEN)
    assert redact(f"401 for {TOKEN}, {TOKEN}") == "401 for (hidden), (hidden)"
    assert redact("quoted: a-token%2Fwith%2Bsigns") == "quoted: (hidden)"


@pytest.mark.parametrize("name", PLAIN_NAMES)
def test_any_other_variable_is_none(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, TOKEN)
    assert redact(f"a {TOKEN}") == f"a {TOKEN}"


def test_short_values_and_paths_of_files_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", "default")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path))
    assert redact(f"default {tmp_path}") == f"default {tmp_path}"


def test_the_longer_of_two_secrets_goes_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_TOKEN", "12345678")
    monkeypatch.setenv("B_TOKEN", "12345678-and-more")
    assert redact("12345678-and-more 12345678") == "(hidden) (hidden)"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("https://me:pass@host/rows.jsonl", "https://me:(hidden)@host/rows.jsonl"),
        ("s3://:pass@host/x and more", "s3://:(hidden)@host/x and more"),
        ("https://ghs0123456789abcdefghij@host/x", "https://(hidden)@host/x"),
        ("https://host/x?a=1&token=abc#end", "https://host/x?a=1&token=(hidden)#end"),
        ("https://host/x?X-Amz-Signature=0f&X-Amz-Date=2", "https://host/x?X-Amz-Signature=(hidden)&X-Amz-Date=2"),
        ("'https://host/x?sig=abc%3D'", "'https://host/x?sig=(hidden)'"),
        ("Authorization: Bearer abcdefgh.ijk", "Authorization: Bearer (hidden)"),
        ("hf_abcdefghijklmnopqrstuvwxyz0123", "(hidden)"),
    ],
)
def test_addresses_and_headers_keep_everything_but_the_secret(text: str, told: str) -> None:
    assert redact(text) == told
    assert redact(told) == told


@pytest.mark.parametrize(
    "text",
    [
        "https://host:8080/a@b",
        "git@host:me/it",
        "lr=1e-4 key=1",
        "a basic way",
        "https://host/?page=2",
        "step-000100@x",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redact(text) == text


def test_a_file_is_masked_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_TOKEN", TOKEN)
    log = tmp_path / "process-0.log"
    log.write_bytes(b"\xff begin " + TOKEN.encode() + b" end\n")
    with log.open("ab") as writer:
        redact_file(log)
        writer.write(b"later\n")
    assert log.read_bytes() == b"\xff begin " + b"*" * len(TOKEN) + b" end\nlater\n"


def test_settings_keep_what_is_no_secret() -> None:
    """Labels and prompts are read again, and learnt."""
    held = {
        "labels": ["Basic Materials", "Bearer instruments"],
        "prefix": "Explain in basic language: ",
        "seed": 20240101,
    }
    assert redact_all(held) == held
    assert redact("Basic instruments") == "Basic (hidden)", "what is said may lose a word"


def test_a_secret_of_digits_breaks_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "20240101")
    assert redact_all({"seed": 20240101, "path": ["a/20240101/b"]}) == {"seed": 20240101, "path": ["a/(hidden)/b"]}
