"""Changed copies of texts: words left out, swapped with their neighbours, replaced by synonyms (Wei and Zou, 2019).

https://arxiv.org/abs/1901.11196. Copies are made of training rows alone, after the others are held out.
"""

from __future__ import annotations

import random
import re
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from peftkit.config.sections import Augment
from peftkit.data.rows import Lazy
from peftkit.data.sources import Table
from peftkit.errors import DataError
from peftkit.tasks.base import Row

Synonyms = Mapping[str, Sequence[str]]
MARKER = re.compile(r"</?\w+>|\[/?\w+\]")
"""A word with a mark of an entity in it (`<e1>`, `[E2]`) stays where it is."""
TRIES = 9
"""So often a text is drawn anew that comes out as it was: a short one may."""


def augmented(table: Table, augment: Augment, columns: Sequence[str], seed: int, anchors: Sequence[str] = ()) -> Table:
    """The rows, each followed by its copies; a row that no copy can differ from, or that has one of `anchors`, has none."""
    copies = Copies(table, augment, columns, seed, anchors)
    numbers = array("q", (table.numbers[row] for row, _ in copies.made))
    return replace(table, rows=copies, numbers=numbers)


class Copies(Lazy):
    """Rows and changed copies of them, made when they are asked for: what a copy says depends on the seed and its row alone."""

    def __init__(
        self, table: Table, augment: Augment, columns: Sequence[str], seed: int, anchors: Sequence[str]
    ) -> None:
        self.table, self.augment, self.columns, self.seed = table, augment, columns, seed
        self.synonyms = read_synonyms(augment.synonyms) if augment.synonyms else {}
        self.made: list[tuple[int, int]] = []
        """Row and number of its copy (0: the row itself)."""
        for number, row in enumerate(table.rows):
            free = all(row.get(name) is None for name in anchors)
            made = range(1, augment.copies + 1) if free else range(0)
            self.made += [(number, 0), *((number, copy) for copy in made if self._copy(row, number, copy) != row)]

    def __len__(self) -> int:
        return len(self.made)

    def row(self, index: int) -> Row:
        number, copy = self.made[index]
        row = self.table.rows[number]
        return self._copy(row, number, copy) if copy else row

    def _copy(self, row: Row, number: int, copy: int) -> Row:
        draw = random.Random(f"augment {self.seed} {self.table.numbers[number]} {copy}")
        texts = {name: row[name] for name in self.columns if isinstance(row.get(name), str)}
        for _ in range(TRIES):
            changed = {name: change(text, self.augment, self.synonyms, draw) for name, text in texts.items()}
            if changed != texts:
                return {**row, **changed}
        return row


def change(text: str, augment: Augment, synonyms: Synonyms, draw: random.Random) -> str:
    """The text with some of its words changed; never without words, and as it is where it has one."""
    words = text.split()
    free = [at for at, word in enumerate(words) if not MARKER.search(word)]
    if len(words) < 2 or not free:
        return text
    before = list(words)
    for at in free:
        if draw.random() < augment.synonym:
            words[at] = synonym(words[at], synonyms, draw)
    pairs = [(left, right) for left, right in pairwise(free) if right == left + 1]
    for left, right in pairs:
        if draw.random() < augment.swap:
            words[left], words[right] = words[right], words[left]
    drawn = {at for at in free if draw.random() < augment.deletion}
    kept = [word for at, word in enumerate(words) if at not in drawn] or [draw.choice(words)]
    return " ".join(kept) if kept != before else text


def synonym(word: str, synonyms: Synonyms, draw: random.Random) -> str:
    """One of the word's synonyms, with its capital and the signs around it; the word itself if it has none."""
    core = re.search(r"\w[\w'-]*\w|\w", word)
    others = synonyms.get(core[0].lower(), ()) if core else ()
    if not core or not others:
        return word
    found = draw.choice(others)
    found = found[:1].upper() + found[1:] if core[0][0].isupper() else found
    return word[: core.start()] + found + word[core.end() :]


def read_synonyms(path: Path) -> dict[str, list[str]]:
    """Word -> its synonyms, of a table with a line of them separated by tabs or commas."""
    found: dict[str, list[str]] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as problem:
        raise DataError(f"--data.augment.synonyms {path} cannot be read: {problem}") from None
    for line in lines:
        words = [word.strip() for word in re.split("[\t,]", line) if word.strip()]
        for word in words:
            others = found.setdefault(word.lower(), [])
            others += [other for other in words if other.lower() != word.lower() and other not in others]
    return found
