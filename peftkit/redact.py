"""Secrets out of what is written and shown: values of the environment's tokens and keys, and what stands in addresses.

redact("https://me:pass@host/rows.jsonl?token=abc")   # https://me:(hidden)@host/rows.jsonl?token=(hidden)
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

HIDDEN = "(hidden)"
SHORTEST = 8
"""A shorter value (`true`, `0`, `default`) stands in too many texts to be taken for a secret."""
NAMES = re.compile(
    r"(TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|PASSCODE|CREDENTIAL|APIKEY)S?(_|$)|(^|_)(\w*(API|ACCESS|PRIVATE|AUTH))?(KEY|PAT)S?(_|$)|_PWD$",
    re.IGNORECASE,
)
"""Names of variables whose values are secrets: HF_TOKEN, WANDB_API_KEY, AWS_SECRET_ACCESS_KEY, PGPASSWORD, ..."""
PASSWORD_IN_URL = re.compile(r"(?P<start>\b[a-z][a-z0-9+.-]*://[^\s/@:'\"]*):(?P<secret>[^\s/@'\"]+)@", re.IGNORECASE)
USER_IN_URL = re.compile(r"(?P<start>\b[a-z][a-z0-9+.-]*://)(?P<secret>[^\s/@:'\"]{20,})@", re.IGNORECASE)
PARAMETER = re.compile(
    r"(?P<start>[?&;][\w.-]*(token|secret|password|passwd|signature|credential|key|auth|sig|pwd)[\w.-]*=)[^\s&#;'\"<>]+",
    re.IGNORECASE,
)
HEADER = re.compile(r"(?P<start>\b(bearer|basic)\s+)[\w.~+/=-]{8,}", re.IGNORECASE)
"""Of a request. Plain text says `basic`, too: only what is said goes through it, no setting."""
SHAPES = re.compile(r"\b(hf_[A-Za-z0-9]{20,}|gh[pousr]_[A-Za-z0-9]{20,}|AKIA[A-Z0-9]{16})\b")
"""Tokens that are known by their looks, wherever they were read from."""


def redact(text: str) -> str:
    """What is said, with (hidden) in place of every secret that this process knows of, or that looks like one."""
    return HEADER.sub(rf"\g<start>{HIDDEN}", redact_setting(text))


def redact_setting(text: str) -> str:
    """The same of a setting, which is read again: nothing of it goes that is no secret."""
    for secret in secrets():
        if secret in text:
            text = text.replace(secret, HIDDEN)
    if "://" in text:
        text = USER_IN_URL.sub(rf"\g<start>{HIDDEN}@", PASSWORD_IN_URL.sub(rf"\g<start>:{HIDDEN}@", text))
    if "=" in text:
        text = PARAMETER.sub(rf"\g<start>{HIDDEN}", text)
    return SHAPES.sub(HIDDEN, text)


def redact_all(value: Any, hide: Callable[[str], str] = redact_setting) -> Any:
    """The same list or mapping with `hide` done to each text in it: numbers and the structure stay what they are."""
    if isinstance(value, str):
        return hide(value)
    if isinstance(value, dict):
        return {redact_all(key, hide): redact_all(item, hide) for key, item in value.items()}
    return [redact_all(item, hide) for item in value] if isinstance(value, (list, tuple)) else value


def secrets() -> list[str]:
    """The environment's secrets, also as they stand in an address or in JSON; the longest first, as one may hold another."""
    values = {value for name, value in os.environ.items() if _named(name) and _is_secret(value)}
    return sorted(
        values | {quote(value, safe="") for value in values} | {json.dumps(value)[1:-1] for value in values},
        key=lambda value: (-len(value), value),
    )


def redact_file(path: Path) -> None:
    """Write * over the secrets in a file, in place: others may be writing behind its end.

    For what libraries' C code and child processes put there by themselves.
    """
    known = [secret.encode() for secret in secrets()]
    if not known or not path.is_file():
        return
    content = path.read_bytes()
    with path.open("r+b") as file:
        for secret in known:
            for found in re.finditer(re.escape(secret), content):
                file.seek(found.start())
                file.write(b"*" * len(secret))


@cache
def _named(name: str) -> bool:
    """Whether a variable of this name holds a secret; asked for every text that is shown."""
    return NAMES.search(name) is not None


def _is_secret(value: str) -> bool:
    # The path of a file of credentials is none.
    return len(value) >= SHORTEST and not (value.startswith(("/", "~")) and Path(value).expanduser().exists())
