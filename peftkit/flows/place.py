"""Where an export goes, and what it must not replace."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from peftkit.errors import ConfigError
from peftkit.exporters import Exporter
from peftkit.exporters.manual import MANUAL
from peftkit.run_folder import RunFolder


def place_of(folder: RunFolder, exporter: Exporter, name: str | None, out: Path | None) -> Path:
    """Where the export goes. ConfigError if something else lies there: other files, or an export that was asked for otherwise."""
    if name is not None and (not name or Path(name).name != name or name.startswith(".")):
        raise ConfigError(
            f"--as {name}: the name of a folder under {folder.path / 'export'}, such as {exporter.name}-2"
        )
    place = out.expanduser() if out else folder.export(name or exporter.name)
    if not place.exists() or (place.is_dir() and not any(place.iterdir())):
        return place
    if out and not (place / MANUAL).is_file():
        raise ConfigError(f"--out {place} is there already, and is no export that could be replaced; name a new folder")
    theirs, own = settings_in(place), exporter.model_dump(mode="json")
    unlike = [
        f"{key} {theirs[key]}, not {own[key]}" for key in own if theirs and key in theirs and theirs[key] != own[key]
    ]
    if unlike:
        raise ConfigError(
            f"{place} holds an export of another kind ({', '.join(unlike)}), which this one would replace;"
            f" name this one with --as, such as --as {place.name}-2, or remove the other"
        )
    return place


def settings_in(place: Path) -> dict[str, Any]:
    """What an export says of its exporter; nothing if it says nothing that can be read."""
    try:
        found: dict[str, Any] = json.loads((place / MANUAL).read_text(encoding="utf-8"))["exporter"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return found
