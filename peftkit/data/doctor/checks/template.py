"""What stands around the text that the model reads: two beginnings, no end, special tokens spelt out in messages."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from peftkit.data.doctor.check import check
from peftkit.data.doctor.edit import edited
from peftkit.data.doctor.encoded import encoded
from peftkit.data.doctor.finding import Finding, Remedy
from peftkit.data.doctor.sheet import Case
from peftkit.data.doctor.values import LABELS, is_conversation, strings
from peftkit.tasks.base import Row

WRITTEN = ("messages", "response", "text", "target")
"""Columns whose text the model learns to write, and so to end."""


@check("double_bos", "trim", model=True)
def double_bos(case: Case) -> Iterator[Finding]:
    """Rows that begin with two beginning-of-text tokens."""
    for sheet in case.sheets:
        bos = _id(case, "bos_token_id")
        rows = [at for at, one in enumerate(encoded(case, sheet)) if bos is not None and one.first == (bos, bos)]
        cut = _leading(case.reading.processor.bos_token) if case.reading and rows else str
        changes = {at: new for at in rows if (new := edited(sheet.rows[at], cut, LABELS))}
        trim = Remedy("trim", "cut the one that the text spells out", changes)
        advice = "" if changes else "the chat template and the tokenizer both write one: --model.chat_template FILE"
        means = "two beginning-of-text tokens: the text spells out the one that the tokenizer adds"
        yield Finding(sheet, "warning", rows, means, (trim,) if changes else (), advice)


@check("no_eos", model=True)
def no_eos(case: Case) -> Iterator[Finding]:
    """Rows whose text has no end: the model does not learn to stop."""
    for sheet in case.sheets:
        if not set(WRITTEN) & set(sheet.columns) or set(LABELS) & set(sheet.columns) or case.reading is None:
            continue
        ends = _special_ids(case.reading.processor)
        found = enumerate(encoded(case, sheet))
        rows = [at for at, one in found if one.last_target is not None and not one.cut and one.last_target not in ends]
        means = "the last token that is learnt is no end token: the model does not learn to stop"
        yield Finding(
            sheet, "warning", rows, means, advice="a tokenizer with an end token, or --model.chat_template FILE"
        )


@check("spelt_tokens", "trim", model=True)
def spelt_tokens(case: Case) -> Iterator[Finding]:
    """Messages in which the template's own tokens stand as words: they were rendered once before."""
    for sheet in case.sheets:
        pattern = _special(case.reading.processor) if case.reading and sheet.task.reads == "text" else None
        if pattern is None:
            continue
        rows = [at for at, row in enumerate(sheet.rows) if _spells(row, pattern)]
        changes = {at: edited(sheet.rows[at], lambda text, of=pattern: of.sub("", text), LABELS) for at in rows}  # type: ignore[misc]
        trim = Remedy("trim", "cut them out", changes)
        yield Finding(sheet, "warning", rows, "messages spell out the tokenizer's special tokens", (trim,))


def _spells(row: Row, pattern: re.Pattern[str]) -> bool:
    talks = [value for column, value in row.items() if is_conversation(value) or column in ("prompt", "response")]
    return any(pattern.search(text) for text in strings(talks))


def _leading(token: str) -> Callable[[str], str]:
    def cut(text: str) -> str:
        while text.startswith(token):
            text = text.removeprefix(token)
        return text

    return cut


def _special(processor: Any) -> re.Pattern[str] | None:
    """The special tokens that no one writes by chance: those of some length, in brackets of some kind."""
    tokens = {one for one in getattr(processor, "all_special_tokens", []) if len(one) > 2}
    tokens |= {one.content for one in getattr(processor, "added_tokens_decoder", {}).values() if one.special}
    marked = sorted((one for one in tokens if re.fullmatch(r"\W.+\W", one)), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, marked))) if marked else None


def _special_ids(processor: Any) -> set[int]:
    added = [number for number, one in getattr(processor, "added_tokens_decoder", {}).items() if one.special]
    return {*getattr(processor, "all_special_ids", []), *added}


def _id(case: Case, name: str) -> int | None:
    return getattr(case.reading.processor, name, None) if case.reading else None
