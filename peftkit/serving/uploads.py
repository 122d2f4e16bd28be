"""Images and sounds in a request: their bytes in base64, never a path, which would be one of the server's own files."""

from __future__ import annotations

import base64
import binascii
from typing import Any

from peftkit.serving.problems import AskedError
from peftkit.tasks.base import Row

FORMATS = {
    "image": {"PNG": b"\x89PNG\r\n\x1a\n", "JPEG": b"\xff\xd8\xff", "GIF": b"GIF8", "BMP": b"BM", "WebP": b"RIFF"},
    "audio": {"WAV": b"RIFF", "FLAC": b"fLaC", "Ogg": b"OggS", "MP3": b"ID3"},
}
"""What is decoded, by its first bytes: the usual formats, and none whose decoder starts another program (EPS)."""


def uploaded(row: Row, kind: str) -> Row:
    """The row with the bytes of what it brings in the columns `image` or `audio`. AskedError for a path, or for no bytes.

    A value is base64 (a `data:` URL too), `{"bytes": base64}`, or numbers.
    """
    if kind not in FORMATS or row.get(kind) is None:
        return row
    return {**row, kind: _bytes_or_numbers(row[kind], kind)}


def _bytes_or_numbers(value: Any, kind: str) -> Any:
    if isinstance(value, list):
        return value  # points or samples
    if isinstance(value, dict) and value.keys() <= {"array", "sampling_rate"} and isinstance(value.get("array"), list):
        return value
    if isinstance(value, dict) and value.keys() == {"bytes"}:
        value = value["bytes"]
    if not isinstance(value, str):
        raise AskedError(f"{kind!r} takes base64 of a file's bytes, or numbers; a path is not read", kind)
    content = _decoded(value, kind)
    if not content.startswith(tuple(FORMATS[kind].values())):
        raise AskedError(f"{kind!r} holds none of {', '.join(FORMATS[kind])}", kind)
    return {"bytes": content}


def _decoded(text: str, kind: str) -> bytes:
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise AskedError(f"{kind!r} is no base64 of a file's bytes; a path or a URL is not read", kind) from None
