"""Conversations whose turns are out of order."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from peftkit.data.doctor.check import check
from peftkit.data.doctor.finding import Finding, drop
from peftkit.data.doctor.sheet import Case
from peftkit.data.doctor.values import content_of, is_conversation, role_of
from peftkit.tasks.base import Row
from peftkit.tasks.chat import KNOWN_ROLES, ROLES

COLUMNS = ("messages", "prompt", "chosen", "rejected")
CAUSES = {
    "unknown": "a message has a role that no task knows",
    "silent": "a message has no content",
    "system": "a system message stands behind other messages",
    "order": "turns do not alternate, or the first is not the user's",
    "unanswered": "the last turn is not the assistant's: nothing is learnt of it",
}


@check("roles", "drop")
def roles(case: Case) -> Iterator[Finding]:
    """Conversations whose turns are out of order, or whose roles are unknown; by cause."""
    for sheet in case.sheets:
        for column in COLUMNS:
            if column in sheet.columns:
                causes = case.each(("roles", column), sheet, lambda row, of=column: cause(row.get(of), of))  # type: ignore[misc]
                for name, means in CAUSES.items():
                    rows = [at for at, found in enumerate(causes) if found == name]
                    yield Finding(sheet, "warning", rows, means, (drop(rows),))


def cause(value: Any, column: str) -> str:
    """The first thing that is wrong with these messages; nothing of what is no conversation."""
    if not is_conversation(value):
        return ""
    known = [ROLES.get(str(role_of(message)), str(role_of(message))) for message in value]
    if not set(known) <= set(KNOWN_ROLES):
        return "unknown"
    if any(_is_silent(message) for message in value):
        return "silent"
    turns = known[1:] if known[0] in ("system", "developer") else known
    if {"system", "developer"} & set(turns):
        return "system"
    if not _alternate(turns, whole=column == "messages"):
        return "order"
    return "unanswered" if turns[-1:] != ["assistant"] and column == "messages" else ""


def _is_silent(message: Row) -> bool:
    content = content_of(message)
    return not message.get("tool_calls") and (not content or (isinstance(content, str) and not content.strip()))


def _alternate(turns: list[str], whole: bool) -> bool:
    """Users and assistants in turn; tools may answer an assistant, several at once."""
    begins = not whole or turns[:1] == ["user"]
    return begins and all(here == "tool" or (before, here) in ALLOWED for before, here in pairwise(turns))


ALLOWED = {("user", "assistant"), ("assistant", "user"), ("tool", "assistant"), ("tool", "user")}
