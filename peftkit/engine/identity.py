"""What makes a run this run: another's checkpoint, copied into its folder, is none to go on from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

SHOWN = 3
"""So many settings are named that differ."""


@dataclass(frozen=True)
class Identity:
    """`settings`: those that decide what is learnt, as in config.yaml. `rows`: a digest of the encoded rows."""

    settings: Mapping[str, Any]
    rows: str

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


def difference(written: Any, mine: Identity) -> str | None:
    """How the run that wrote `written` into a manifest differs from `mine`, in words; None if it is the same run.

    A setting that one of them lacks is no difference: another version of peftkit may have more of them.
    """
    if not isinstance(written, Mapping) or not isinstance(written.get("settings"), Mapping):
        return "its manifest.json does not say of which"
    told = [
        f"its --{name} is {theirs}, and here {own}" for name, theirs, own in _unlike(written["settings"], mine.settings)
    ]
    if told:
        return "; ".join(told[:SHOWN]) + (f"; and {len(told) - SHOWN} settings more" if len(told) > SHOWN else "")
    if written.get("rows") != mine.rows:
        return (
            "it learnt other rows than --data has now; put back those that the run began with,"
            " or begin anew in another --out"
        )
    return None


def _unlike(theirs: Mapping[str, Any], own: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any, Any]]:
    if theirs.get("name") != own.get("name"):  # another choice: its settings are others, too
        yield path.removesuffix("."), theirs.get("name"), own.get("name")
        return
    for name in sorted(theirs.keys() & own.keys()):
        a, b = theirs[name], own[name]
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            yield from _unlike(a, b, f"{path}{name}.")
        elif a != b:
            yield path + name, a, b
