"""Clean rows of every kind of task, seeded, and known defects planted in them: what is expected is counted while planting."""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ClassVar

from peftkit.tasks import Task
from peftkit.tasks.base import Row

ENGLISH = [
    "the",
    "old",
    "house",
    "near",
    "river",
    "stood",
    "quiet",
    "while",
    "children",
    "played",
    "under",
    "great",
    "trees",
    "and",
    "their",
    "mother",
    "watched",
    "from",
    "window",
    "because",
    "rain",
    "had",
    "stopped",
    "before",
    "evening",
    "people",
    "who",
    "walked",
    "along",
    "street",
    "could",
    "hear",
    "music",
    "through",
    "open",
    "door",
    "someone",
    "always",
    "asked",
    "why",
    "this",
    "small",
    "town",
    "kept",
    "its",
    "charm",
    "after",
    "so",
    "many",
    "years",
    "nobody",
    "really",
    "knew",
    "answer",
    "but",
    "everyone",
    "liked",
    "living",
    "there",
    "with",
    "good",
    "bread",
    "fresh",
    "milk",
    "friendly",
    "neighbours",
    "long",
    "summers",
    "short",
    "winters",
    "endless",
    "stories",
    "about",
    "ships",
    "sailors",
    "storms",
    "lost",
    "treasure",
    "hidden",
    "under",
    "sand",
    "where",
    "birds",
    "rested",
    "during",
    "their",
    "journey",
    "south",
    "every",
    "autumn",
    "when",
    "leaves",
    "turned",
    "golden",
]
GERMAN = [
    "der",
    "alte",
    "Mann",
    "wohnte",
    "neben",
    "einem",
    "ruhigen",
    "Fluss",
    "und",
    "seine",
    "Kinder",
    "spielten",
    "immer",
    "unter",
    "den",
    "hohen",
    "Bäumen",
    "während",
    "die",
    "Mutter",
    "aus",
    "dem",
    "Fenster",
    "schaute",
    "weil",
    "der",
    "Regen",
    "endlich",
    "aufgehört",
    "hatte",
    "niemand",
    "wusste",
    "warum",
    "diese",
    "kleine",
    "Stadt",
    "nach",
    "so",
    "vielen",
    "Jahren",
    "noch",
    "immer",
    "ihren",
    "Zauber",
    "behielt",
    "aber",
    "alle",
    "lebten",
    "gerne",
    "dort",
    "mit",
    "gutem",
    "Brot",
    "frischer",
    "Milch",
]


def sentence(draw: random.Random, words: int = 24, vocabulary: list[str] = ENGLISH) -> str:
    return " ".join(draw.choices(vocabulary, k=words))


class Columns(Task):
    """A task that is nothing but its columns, so that checks are held to names of columns and not to classes."""


def columns_task(*sets: Iterable[str], also: Iterable[str] = ()) -> Task:
    names = {name: (name,) for one in (*sets, also) for name in one}

    class Own(Columns):
        columns: ClassVar[dict[str, tuple[str, ...]]] = names
        needs: ClassVar[tuple[tuple[str, ...], ...]] = tuple(tuple(one) for one in sets)

    return Own.model_construct()


def classification(draw: random.Random) -> Row:
    return {"text": sentence(draw), "label": draw.choice(["positive", "negative", "neutral"])}


def several_labels(draw: random.Random) -> Row:
    return {
        "text": sentence(draw),
        "label": sorted(draw.sample(["sport", "politics", "science", "travel"], draw.randint(0, 3))),
    }


def regression(draw: random.Random) -> Row:
    return {"text": sentence(draw), "label": round(draw.uniform(0, 5), 3)}


def tagging(draw: random.Random) -> Row:
    words = draw.choices(ENGLISH, k=24)
    tags = ["O"] * 24
    for start, kind in zip(draw.sample(range(0, 20, 5), 2), draw.sample(["PER", "LOC", "ORG"], 2), strict=True):
        tags[start : start + 3] = [f"B-{kind}", f"I-{kind}", f"I-{kind}"]
    return {"tokens": words, "tags": tags}


def question(draw: random.Random) -> Row:
    answer = (
        f"Mr {sentence(draw, 2).title()} {draw.choice('ABCDEFGH')}{draw.choice('IJKLMNOP')}{draw.choice('QRSTUVWX')}"
    )
    before = sentence(draw, 12)
    answers = {"text": [answer], "answer_start": [len(before) + 1]}
    return {"context": f"{before} {answer} {sentence(draw, 12)}", "question": sentence(draw, 10), "answers": answers}


def translation(draw: random.Random) -> Row:
    return {"source": sentence(draw), "target": sentence(draw, 20, GERMAN)}


def chat(draw: random.Random) -> Row:
    turns = [("user", 12), ("assistant", 14)] * draw.randint(1, 2)
    return {"messages": [{"role": role, "content": sentence(draw, words)} for role, words in turns]}


def preference(draw: random.Random) -> Row:
    return {"prompt": sentence(draw, 12), "chosen": sentence(draw, 14), "rejected": sentence(draw, 14)}


class Garden:
    """Rows in which defects are planted, each in rows that no other defect touches; `expected` counts them by check and split."""

    def __init__(self, make: Callable[[random.Random], Row], text: str, count: int = 400, seed: int = 0) -> None:
        self.draw = random.Random(seed)
        self.make, self.text = make, text
        self.rows: dict[str, list[Any]] = {
            "train": [make(self.draw) for _ in range(count)],
            "test": [make(self.draw) for _ in range(count // 4)],
        }
        self.free = {split: self.draw.sample(range(len(rows)), len(rows)) for split, rows in self.rows.items()}
        self.expected: dict[tuple[str, str], set[int]] = defaultdict(set)

    def take(self, check: str, count: int = 5, split: str = "train") -> list[Row]:
        """Rows to be spoilt, which `check` must then find."""
        taken = [self.free[split].pop() for _ in range(count)]
        self.expected[check, split] |= {at + 1 for at in taken}
        return [self.rows[split][at] for at in taken]

    def spoil(self, check: str, change: Callable[[Row], None], count: int = 5, split: str = "train") -> None:
        for row in self.take(check, count, split):
            change(row)

    def change_text(self, check: str, change: Callable[[str], str], count: int = 5) -> None:
        self.spoil(check, lambda row: row.update({self.text: change(row[self.text])}), count)

    def repeat(
        self, check: str, change: Callable[[Row], None] = lambda row: None, both: bool = False, count: int = 5
    ) -> None:
        """Changed copies at the end, which `check` must find (and the rows that they were made from, if `both`)."""
        for row in [self.free["train"].pop() for _ in range(count)]:
            self.append(check, self.rows["train"][row], change)
            if both:
                self.expected[check, "train"].add(row + 1)

    def leak(self, check: str, change: Callable[[Row], None] = lambda row: None, count: int = 5) -> None:
        """Changed copies of test rows at the end of the training rows."""
        for row in [self.free["test"].pop() for _ in range(count)]:
            self.append(check, self.rows["test"][row], change)

    def append(self, check: str, row: Row, change: Callable[[Row], None]) -> None:
        copy = json.loads(json.dumps(row))
        change(copy)
        self.rows["train"].append(copy)
        self.expected[check, "train"].add(len(self.rows["train"]))

    def replace_line(self, check: str, spoil: Callable[[bytes], bytes], count: int = 5) -> None:
        """Lines whose bytes are spoilt."""
        for at in [self.free["train"].pop() for _ in range(count)]:
            self.rows["train"][at] = spoil(json.dumps(self.rows["train"][at], ensure_ascii=False).encode())
            self.expected[check, "train"].add(at + 1)

    def write(self, folder: Path) -> dict[str, str]:
        """The files, by split."""
        folder.mkdir(parents=True, exist_ok=True)
        for split, rows in self.rows.items():
            lines = [row if isinstance(row, bytes) else json.dumps(row, ensure_ascii=False).encode() for row in rows]
            (folder / f"{split}.jsonl").write_bytes(b"\n".join(lines) + b"\n")
        return {split: str(folder / f"{split}.jsonl") for split in self.rows}


def one_word(row: Row, column: str) -> None:
    """One letter of the text replaced."""
    text = row[column]
    row[column] = f"{text[:50]}q{text[51:]}"
