"""Files of rows: one, or several of one format, after one another."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePath

from peftkit.data.sources import columnar, conll, digests, json_rows, plain_text
from peftkit.data.sources.opened import OPENERS, inner_name
from peftkit.data.sources.separated import separated
from peftkit.data.sources.table import Numbered, Places, Source
from peftkit.errors import DataError


@dataclass(frozen=True)
class Format:
    """How a file's rows are read. `reader` takes the path, and where to put images and sounds if they can stand in it."""

    unit: str
    reader: Callable[..., Numbered]
    is_binary: bool = False

    def rows(self, path: Path, media: Path) -> Numbered:
        return self.reader(path, media) if self.is_binary else self.reader(path)


JSON_LINES = Format("line", json_rows.lines)
CONLL = Format("line", conll.sentences)
PARQUET = Format("row", columnar.parquet, is_binary=True)
ARROW = Format("row", columnar.arrow, is_binary=True)
TEXT = Format("line", plain_text.lines)
FORMATS: dict[str, Format] = {
    ".jsonl": JSON_LINES,
    ".ndjson": JSON_LINES,
    ".json": Format("row", json_rows.document),
    ".csv": Format("line", separated(",")),
    ".tsv": Format("line", separated("\t")),
    ".txt": TEXT,
    ".parquet": PARQUET,
    ".arrow": ARROW,
    ".feather": ARROW,
    ".conll": CONLL,
    ".bio": CONLL,
    ".iob": CONLL,
    ".iob2": CONLL,
}
NOTES = ("dataset_info.json", "dataset_infos.json", "state.json")
"""Files that `datasets` lays beside the data."""


def suffix_of(path: Path) -> str:
    """What names its format: `.jsonl` of rows.jsonl and of rows.jsonl.gz."""
    return PurePath(inner_name(path)).suffix.lower()


def looks_like_data(path: Path) -> bool:
    """By its name alone; a zip may hold anything."""
    packed = path.suffix.lower() in OPENERS
    suffix = Path(path.stem).suffix if packed else path.suffix
    known = suffix.lower() in FORMATS or (path.suffix.lower() == ".zip" and not suffix)
    return known and not path.name.startswith(".") and path.name not in NOTES


def one(path: Path, media: Path) -> Source:
    found = format_of(path)
    return Source(path.name, found.unit, partial(found.rows, path, media), partial(digests.one, path, suffix_of(path)))


def several(name: str, named: Mapping[str, Path], media: Path) -> Source:
    """The rows of all of these files, in this order; a row's place names its file."""
    formats = {label: format_of(path) for label, path in named.items()}
    if len(set(formats.values())) > 1:
        counts = Counter(suffix_of(path) for path in named.values())
        there = ", ".join(f"{count} {suffix}" for suffix, count in sorted(counts.items()))
        raise DataError(
            f"{name} has data files of several formats ({there}); name those of one, e.g. 'FOLDER/*{min(counts)}'"
        )
    places = Places()
    rows = partial(_after_one_another, named, formats, places, media)
    return Source(name, "row", rows, partial(digests.together, named), places)


def format_of(path: Path) -> Format:
    suffix = suffix_of(path)
    if suffix not in FORMATS:
        raise DataError(
            f"{path} has a suffix that names no format known here; there are: {' '.join(FORMATS)},"
            f" each of the text formats also compressed ({' '.join(OPENERS)})"
        )
    found = FORMATS[suffix]
    if found.is_binary and path.suffix.lower() in OPENERS:
        raise DataError(f"{path} is a compressed {suffix} file, which is not read in a stream: unpack it")
    return found


def _after_one_another(named: Mapping[str, Path], formats: dict[str, Format], places: Places, media: Path) -> Numbered:
    total = 0
    for label, path in named.items():
        places.begin(f"{label} {formats[label].unit}")
        for number, row in formats[label].rows(path, media):
            places.add(number)
            total += 1
            yield total, row
