"""Real rows: names of people and companies, American addresses, and questions about these, from XML labelled by hand."""

from __future__ import annotations

import json
import random
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from tests.real.carriers import carrier

Row = dict[str, Any]
Labelled = list[tuple[str, str]]
"""Words, each with its label."""

ASKED = {
    "which city is it in?": "PlaceName",
    "what is the zip code?": "ZipCode",
    "which state is it in?": "StateName",
    "what is the name of the street?": "StreetName",
}
"""Questions, and the label of the words that answer them."""


def names() -> list[Row]:
    """{text, label}: the names, person or company."""
    folder = carrier("names")
    kinds = {kind: labelled(folder / f"{kind}_labeled.xml") for kind in ("person", "company")}
    return mixed(
        {"text": " ".join(word for word, _ in text), "label": kind} for kind, texts in kinds.items() for text in texts
    )


def addresses() -> list[Row]:
    """{tokens, tags}: words, each with a B- or I- tag; words that follow each other under one label are one entity."""
    return mixed(tagged(words) for words in labelled(carrier("addresses") / "labeled.xml"))


def questions() -> list[Row]:
    """{context, question, answers}: what stands once in an address, asked of it."""
    rows = []
    for words in labelled(carrier("addresses") / "labeled.xml"):
        context = " ".join(word for word, _ in words)
        for question, label in ASKED.items():
            spans = [(text, start) for kind, text, start in entities(words) if kind == label]
            if len(spans) == 1:
                answers = {"text": [spans[0][0]], "answer_start": [spans[0][1]]}
                rows.append({"context": context, "question": question, "answers": answers})
    return mixed(rows)


def labelled(file: Path) -> list[Labelled]:
    """The texts of an XML file whose elements are words."""
    found = []
    for text in ET.parse(file).getroot():  # noqa: S314  # its sum is known
        words = [(word.text.strip(), word.tag) for word in text if word.text and word.text.strip()]
        if words:
            found.append([(part, tag) for word, tag in words for part in word.split()])
    return found


def tagged(words: Labelled) -> Row:
    before = ["", *(label for _, label in words)]
    tags = [("I-" if label == last else "B-") + label for last, (_, label) in zip(before, words, strict=False)]
    return {"tokens": [word for word, _ in words], "tags": tags}


def entities(words: Labelled) -> list[tuple[str, str, int]]:
    """Label, text and first character of each run of words under one label, without the comma behind it."""
    found, at = [], 0
    for label, group in groupby(words, key=lambda word: word[1]):
        text = " ".join(word for word, _ in group)
        found.append((label, text.rstrip(",."), at))
        at += len(text) + 1
    return found


def mixed(rows: Iterable[Row]) -> list[Row]:
    """Without repeated rows, in an order that has nothing to do with how they were published."""
    once = list({json.dumps(row): row for row in rows}.values())
    random.Random(1).shuffle(once)
    return once


def written(file: Path, rows: Sequence[Row]) -> str:
    """The rows as JSON lines; returns the file's name."""
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)
