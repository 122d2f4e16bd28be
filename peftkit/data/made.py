"""Rows for measuring: prompts and answers of lognormal lengths, cut from Python's own library; the same seed gives the same."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

from peftkit.data.demo import modules
from peftkit.tasks.base import Row

PER_TOKEN = 3.6
"""About the characters of a token of code."""
PROMPT, ANSWER = (70, 0.85, 10, 400), (75, 0.95, 20, 1000)
"""Of the lengths in tokens: the median, sigma, the least and the most."""
LONG = 20_000
"""Characters of a file that can be cut anywhere."""


def conversations(count: int, seed: int) -> list[Row]:
    """`count` rows of a prompt and a response."""
    draw = random.Random(seed)
    texts = [text for file in sorted(modules()) if len(text := file.read_text(encoding="utf-8")) > LONG]
    return [{"prompt": _cut(texts, PROMPT, draw), "response": _cut(texts, ANSWER, draw)} for _ in range(count)]


def _cut(texts: list[str], shape: tuple[float, float, int, int], draw: random.Random) -> str:
    median, sigma, least, most = shape
    size = int(PER_TOKEN * max(least, min(most, draw.lognormvariate(math.log(median), sigma))))
    text = draw.choice(texts)
    start = draw.randrange(len(text) - size)
    return text[start : start + size].strip() or "pass"


def write_conversations(file: Path, count: int, seed: int) -> Path:
    """The rows as a file, a JSON object a line."""
    file.write_text("".join(json.dumps(row) + "\n" for row in conversations(count, seed)), encoding="utf-8")
    return file
