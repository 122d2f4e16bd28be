"""Texts whose characters are not what they look like: decoded wrongly, decomposed, invisible."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator

from peftkit.data.doctor.check import check
from peftkit.data.doctor.edit import edited
from peftkit.data.doctor.finding import Finding, Remedy, drop
from peftkit.data.doctor.sheet import Case
from peftkit.data.doctor.values import strings

CONTROL = re.compile("[\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f-\u009f\ufeff\ufffe\uffff\ud800-\udfff]")
"""Control characters but tab and line ends, the byte-order mark, what is no character, and halves of one."""
WRONG = re.compile("[\u00c2-\u00f4][\u0080-\u00bf\u0152-\u0178\u02c6\u02dc\u2013-\u203a\u20ac\u2122]+")
"""What UTF-8's bytes of one character look like when they are read as Windows-1252."""


@check("mojibake", "normalise")
def mojibake(case: Case) -> Iterator[Finding]:
    """UTF-8 that was once read as Windows-1252."""
    yield from _texts(case, "mojibake", repaired, "UTF-8 that was read as Windows-1252", "decode it again")


@check("unicode", "normalise")
def unicode(case: Case) -> Iterator[Finding]:
    """Control characters, byte-order marks and decomposed letters."""
    means = "control characters, byte-order marks or letters not in NFC: equal words get different tokens"
    yield from _texts(case, "unicode", normalised, means, "compose letters (NFC) and take such characters out")


@check("lost_characters", "drop")
def lost_characters(case: Case) -> Iterator[Finding]:
    """The mark that a decoder leaves for what it could not read."""
    for sheet in case.sheets:
        rows = [
            at for at, row in enumerate(sheet.rows) if any("\ufffd" in text for text in strings(list(row.values())))
        ]
        yield Finding(sheet, "warning", rows, "characters were lost when this was decoded (U+FFFD)", (drop(rows),))


def normalised(text: str) -> str:
    return text if text.isascii() and text.isprintable() else unicodedata.normalize("NFC", CONTROL.sub("", text))


def repaired(text: str) -> str:
    return text if text.isascii() else WRONG.sub(_decoded, text)


def _decoded(found: re.Match[str]) -> str:
    data = b"".join(_byte(letter) for letter in found[0])
    try:
        return data.decode()
    except UnicodeDecodeError:
        return found[0]


def _byte(letter: str) -> bytes:
    try:
        return letter.encode("cp1252")
    except UnicodeEncodeError:
        return letter.encode("latin-1", "ignore")


def _texts(case: Case, kind: str, change: Callable[[str], str], means: str, says: str) -> Iterator[Finding]:
    for sheet in case.sheets:
        new = case.each(kind, sheet, lambda row: edited(row, change))
        changes = {at: one for at, one in enumerate(new) if one}
        yield Finding(sheet, "warning", list(changes), means, (Remedy("normalise", says, changes),))
