"""Folders: of files by class, of files that a table describes, of data files, each also with a folder a split.

photos/cat/1.png                       {image: .../1.png, label: cat}; so audio/yes/1.wav and texts/spam/1.txt (text, label)
photos/1.png  photos/metadata.jsonl    the table's columns, with `file_name` as `image` or `audio`
photos/1.png                           {image: .../1.png}
rows/a.jsonl  rows/b.jsonl             the rows of all files, in the order of their names
DATA/train/... DATA/test/...           the split that is asked for; so for files train.jsonl, test.jsonl
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from peftkit.data.sources import digests, files, hub
from peftkit.data.sources.opened import text
from peftkit.data.sources.table import Numbered, Source
from peftkit.errors import DataError
from peftkit.tasks.base import Row

KINDS = {
    "image": (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm"),
    "audio": (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".m4a"),
    "text": (".txt",),
}
KIND_OF = {suffix: kind for kind, suffixes in KINDS.items() for suffix in suffixes}
METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}
ABOUT = ("README", "LICENSE", "LICENCE", "NOTICE", "CITATION")
"""Texts about the data."""
SPLIT_OF = {word: split for split, words in SPLITS.items() for word in words}


def find(folder: Path, split: str, media: Path) -> Source:
    """What the folder holds, by what lies in it."""
    if hub.is_saved(folder):
        return hub.saved(folder, split, media)
    there = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    inside = [path for path in there if path.is_dir()]
    if inside and all(path.name.lower() in SPLIT_OF for path in inside):
        return find(_of_split(folder, inside, split), split, media)
    tables = [path for path in there if path.name in METADATA]
    if tables:
        return _described(folder, tables[0], media)
    loose = [path for path in there if path.is_file()]
    return _by_class(folder, loose, inside) or _flat(folder, loose, inside, split, media)


def _of_split(folder: Path, inside: list[Path], split: str) -> Path:
    asked = SPLIT_OF.get(split.lower(), split)
    found = [path for path in inside if SPLIT_OF[path.name.lower()] == asked]
    if len(found) != 1:
        names = ", ".join(path.name for path in inside)
        count = "more than one folder" if found else "no folder"
        raise DataError(
            f"{folder} has {count} for the split {split!r}; it has: {names}. Name one: {folder}/{inside[0].name}"
        )
    return found[0]


def _flat(folder: Path, there: list[Path], inside: list[Path], split: str, media: Path) -> Source:
    """Files without classes: data files, or images or sounds to be labelled."""
    data = [path for path in there if files.looks_like_data(path)]
    loose = [path for path in there if KIND_OF.get(path.suffix.lower(), "text") != "text"]
    if data and loose:
        raise DataError(
            f"{folder} holds both data files ({data[0].name}, ...) and {_kinds(loose)} ({loose[0].name}, ...); a table of"
            f" the files is named {' or '.join(METADATA)}, and data files lie in a folder of their own"
        )
    if loose:
        return _listed(folder, [(path, None) for path in loose])
    if not data:
        names = ", ".join(path.name for path in [*inside, *there][:8])
        raise DataError(f"{folder} has no data in it that is read here; it has: {names or 'nothing'}")
    chosen = _by_split(folder, data, split)
    return files.several(str(folder), digests.below(folder, chosen), media)


def _by_split(folder: Path, data: list[Path], split: str) -> list[Path]:
    """Files whose names say a split are taken for that one: what is to be tested must not be learnt."""
    named = {path: _split_in(path.name) for path in data}
    if not any(named.values()):
        return data
    asked = SPLIT_OF.get(split.lower(), split)
    chosen = [path for path, found in named.items() if found == asked]
    unnamed = [path.name for path, found in named.items() if found is None]
    if unnamed or not chosen:
        names = ", ".join(path.name for path in data[:8])
        why = f"some files name a split and {unnamed[0]} does not" if unnamed else f"no file names the split {split!r}"
        raise DataError(f"{folder}: {why}; it has: {names}. Name one file, or several: '{folder}/*.SUFFIX'")
    return chosen


def _split_in(name: str) -> str | None:
    words = re.split(r"[^a-z]+", name.lower().partition(".")[0])
    return next((SPLIT_OF[word] for word in words if word in SPLIT_OF), None)


def _by_class(folder: Path, loose: list[Path], inside: list[Path]) -> Source | None:
    """None if the folders in it hold no images, sounds or texts, or texts beside files of rows."""
    found = [(path, place.name) for place in inside for path in _members(place)]
    is_text = {KIND_OF[path.suffix.lower()] for path, _ in found} == {"text"}
    if not found or (is_text and any(files.looks_like_data(path) and path.suffix != ".txt" for path in loose)):
        return None
    same = [path.name for path in loose if (path.suffix.lower() in KINDS["text"]) == is_text and _is_member(path)]
    if same:
        raise DataError(
            f"{folder} has files beside its folders of classes ({same[0]}, ...): put each into its class's folder"
        )
    deeper = [path for place in inside for path in place.iterdir() if path.is_dir() and _members(path)]
    if deeper:
        raise DataError(
            f"{folder} has folders in its folders of classes ({deeper[0].relative_to(folder)}, ...): which is the class?"
            " Lay each class's files right into its folder"
        )
    return _listed(folder, found)


def _members(folder: Path) -> list[Path]:
    return sorted(filter(_is_member, folder.iterdir()))


def _is_member(path: Path) -> bool:
    kind = KIND_OF.get(path.suffix.lower())
    return kind is not None and not path.name.startswith(".") and (kind != "text" or path.stem.upper() not in ABOUT)


def _listed(folder: Path, found: Sequence[tuple[Path, str | None]]) -> Source:
    """A row a file."""
    paths = [path for path, _ in found]
    if len({KIND_OF[path.suffix.lower()] for path in paths}) > 1:
        raise DataError(f"{folder} holds files of several kinds ({_kinds(paths)}); name a folder with one of them")
    places = [f"{folder.name}/{path.relative_to(folder)}" for path in paths]
    return Source(str(folder), "row", partial(_file_rows, found), partial(_digest, folder, paths), places)


def _file_rows(found: Sequence[tuple[Path, str | None]]) -> Numbered:
    for number, (path, label) in enumerate(found, start=1):
        row = _file_row(path)
        yield number, row if label is None else {**row, "label": label}


def _file_row(path: Path) -> Row:
    kind = KIND_OF[path.suffix.lower()]
    if kind != "text":
        return {kind: str(path.absolute())}
    with text(path, None) as file:
        return {"text": file.read()}


def _kinds(paths: list[Path]) -> str:
    return ", ".join(sorted({KIND_OF[path.suffix.lower()] for path in paths}))


def _described(folder: Path, table: Path, media: Path) -> Source:
    read = files.one(table, media)
    rows = partial(_with_paths, folder, read)
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix.lower() in KIND_OF)
    return Source(f"{folder.name}/{table.name}", read.unit, rows, partial(_digest, folder, [table, *paths]))


def _with_paths(folder: Path, table: Source) -> Iterator[tuple[int, Row]]:
    """The table's rows, each `file_name` (a path below the folder) replaced by the file's own."""
    for number, row in table.rows():
        place = f"{folder.name}/{table.name} {table.unit} {number}"
        if not isinstance(row.get("file_name"), str):
            raise DataError(f"{place}: no column 'file_name' with the name of a file; it has: {', '.join(row)}")
        path = folder / row["file_name"]
        if ".." in path.parts or Path(row["file_name"]).is_absolute():
            raise DataError(
                f"{place}: 'file_name' leads out of the folder; put the file into it, and name it from there"
            )
        if path.suffix.lower() not in KIND_OF or not path.is_file():
            raise DataError(
                f"{place}: the file that it names in 'file_name' is not in the folder, or is no image or sound"
            )
        rest = {name: value for name, value in row.items() if name != "file_name"}
        yield number, {**_file_row(path), **rest}


def _digest(folder: Path, paths: list[Path], root: Path) -> str:
    """The rows name the files by their paths, so a folder that has moved is another one."""
    contents = digests.together(digests.below(folder, paths), root)
    return hashlib.sha256(f"{folder.absolute()} {contents}".encode("utf-8", "surrogateescape")).hexdigest()
