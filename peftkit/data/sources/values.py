"""Values that JSON cannot hold, as what it can: dates as ISO text, images and sounds as files in the cache.

And values that are numbers for what they mean: class labels of `datasets` by their names (-1, a missing label, as None).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path, PurePath
from typing import Any

from peftkit.tasks.base import Row

Change = Callable[[Any], Any]

MAGIC = {
    b"\x89PNG": ".png",
    b"\xff\xd8\xff": ".jpg",
    b"GIF8": ".gif",
    b"BM": ".bmp",
    b"II*\x00": ".tif",
    b"MM\x00*": ".tif",
    b"fLaC": ".flac",
    b"OggS": ".ogg",
    b"ID3": ".mp3",
    b"\xff\xfb": ".mp3",
}
RIFF = {b"WEBP": ".webp", b"WAVE": ".wav"}


def plain_row(row: Row, features: dict[str, Any], media: Path) -> Row:
    """`features` are those of `datasets`, where the rows have some; files are written into `media`."""
    return {name: _plain(_named(value, features.get(name)), media) for name, value in row.items()}


def _named(value: Any, feature: Any) -> Any:
    """A value as its feature means it: labels by name, JSON decoded, also in lists and objects."""
    kind = type(feature).__name__
    if value is None or feature is None:
        return value
    if kind == "ClassLabel" and isinstance(value, int):
        return None if value < 0 else str(feature.int2str(value))
    if kind == "Json" and isinstance(value, str):
        return json.loads(value)
    if isinstance(feature, dict) and isinstance(value, dict):
        return {name: _named(inner, feature.get(name)) for name, inner in value.items()}
    inner = feature[0] if isinstance(feature, list) else getattr(feature, "feature", None)
    if inner is None or type(inner).__name__ == "Value":
        return value
    return [_named(each, inner) for each in value] if isinstance(value, list) else _named(value, inner)


def _plain(value: Any, media: Path) -> Any:
    if value is None or isinstance(value, (str, int, float)):
        return value
    if isinstance(value, dict):
        if value.keys() == {"bytes", "path"}:  # an image or a sound as `datasets` keeps it
            return _kept(value["bytes"], value["path"], media) if value["bytes"] else value["path"]
        return {str(name): _plain(inner, media) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner, media) for inner in value]
    if isinstance(value, (bytes, bytearray)):
        return _kept(bytes(value), None, media)
    return _scalar(value)


def _scalar(value: Any) -> Any:
    if hasattr(value, "isoformat"):
        return value.isoformat()
    if isinstance(value, Decimal):
        return float(value)
    return value.tolist() if hasattr(value, "tolist") else str(value)


def _kept(content: bytes, name: str | None, media: Path) -> str:
    """The path of a file with this content; the same content is written once, whoever writes it."""
    sha = hashlib.sha256(content).hexdigest()
    target = media / sha[:2] / (sha + _suffix(content, name))
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = target.with_name(f"{target.name}.{os.getpid()}")
        beside.write_bytes(content)
        beside.replace(target)
    return str(target.absolute())


def _suffix(content: bytes, name: str | None) -> str:
    if content[:4] == b"RIFF":
        return RIFF.get(content[8:12], "")
    found = [suffix for magic, suffix in MAGIC.items() if content.startswith(magic)]
    return found[0] if found else PurePath(name or "").suffix.lower()
