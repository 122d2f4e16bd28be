"""The kinds of settings: a kind (a type annotation) in plain words, and a written word as a value of its kind."""

from __future__ import annotations

import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from peftkit.config import amount, duration
from peftkit.config.amount import Amount
from peftkit.config.duration import Duration
from peftkit.config.section import Choice, Section
from peftkit.config.yaml import Plain

NUMBERS = {int: "a whole number", float: "a number"}
WORDS = {
    str: "text",
    Path: "a path",
    bool: "true or false",
    Duration: duration.EXAMPLES,
    Amount: amount.EXAMPLES,
    Any: "any value",
}
PLURALS = {"a whole number": "whole numbers", "a number": "numbers", "text": "words", "a path": "paths"}


def kind_of(field: FieldInfo) -> Any:
    """The field's annotation, with the limits that pydantic took out of it."""
    return Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation


def alternatives(kind: Any) -> Iterator[tuple[Any, list[Any]]]:
    """The members of a union, each as its type and its limits; a kind that is no union is one member."""
    limits: list[Any] = []
    while get_origin(kind) is Annotated:
        kind, *found = get_args(kind)
        limits += [limit for one in found for limit in (one.metadata if isinstance(one, FieldInfo) else [one])]
    if get_origin(kind) in (Union, types.UnionType):
        for member in get_args(kind):
            yield from alternatives(member)
    else:
        yield kind, limits


def section_of(kind: Any) -> type[Section] | None:
    """The section that a field of this kind holds, if it holds one."""
    for member, _ in alternatives(kind):
        if isinstance(member, type) and issubclass(member, Section):
            return member
    return None


def member_of(kind: Any, origin: type) -> Any:
    """The list, tuple or dict in this kind, if it has one."""
    for member, _ in alternatives(kind):
        if (get_origin(member) or member) is origin:
            return member
    return None


def takes(kind: Any, *wanted: Any) -> bool:
    """Whether one of these types is among the kind's alternatives."""
    return any(member in wanted for member, _ in alternatives(kind))


def is_switch(kind: Any) -> bool:
    """Whether the flag by itself means true."""
    return takes(kind, bool)


def sequence_of(kind: Any) -> Any:
    """The list or tuple in this kind, if it has one."""
    return member_of(kind, list) or member_of(kind, tuple)


def describe(kind: Any) -> str:
    """What a setting may be, in plain words: `a number above 0, or null`."""
    members = list(alternatives(kind))
    words = [_describe(member, limits) for member, limits in members if member is not type(None)]
    if len(words) < len(members):
        words.append("null")
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _describe(member: Any, limits: list[Any]) -> str:
    origin, inner = get_origin(member), get_args(member)
    if member in NUMBERS:
        return NUMBERS[member] + _range(limits)
    if origin is Literal:
        return "one of " + ", ".join(str(value) for value in inner)
    if origin is list:
        return f"a list of {_plural(inner[0])}"
    if origin is tuple:
        return f"{len(inner)} {_plural(inner[0])}" if Ellipsis not in inner else f"a list of {_plural(inner[0])}"
    if origin is dict:
        return f"a mapping of {_plural(inner[0])} to {_plural(inner[1])}, as in '{{a: b}}'"
    if isinstance(member, type) and issubclass(member, Choice):
        return "one of " + ", ".join(member.registry)
    return WORDS.get(member, getattr(member, "__name__", str(member)))


def _plural(kind: Any) -> str:
    section = section_of(kind)
    if section and issubclass(section, Choice):
        return "names among " + ", ".join(section.registry)
    words = describe(kind)
    for one, many in PLURALS.items():
        if words == one or words.startswith(one + " "):
            return many + words[len(one) :]
    if section:
        return f"mappings ({', '.join(section.model_fields)})"
    return f"values, each {words}"


def _range(limits: list[Any]) -> str:
    """` above 0`, ` from 0 up`, ` from 0 to below 1`, ..."""
    gt, ge, lt, le = (_limit(limits, name) for name in ("gt", "ge", "lt", "le"))
    low = f" above {gt:g}" if gt is not None else f" from {ge:g}" if ge is not None else ""
    high = f"below {lt:g}" if lt is not None else f"{le:g}" if le is not None else ""
    if gt is not None and high:
        return f"{low} and {'up to ' if le is not None else ''}{high}"
    if ge is not None:
        return f"{low} to {high}" if high else f"{low} up"
    return low or (f" {high}" if lt is not None else f" up to {high}" if high else "")


def _limit(limits: list[Any], name: str) -> Any:
    return next((value for limit in limits if (value := getattr(limit, name, None)) is not None), None)


def fit(value: Any, kind: Any) -> Any:
    """`value` with every word without quotes read as this kind means it; what does not fit is left for pydantic to refuse.

    >>> fit(Plain("12"), str), fit(Plain("12"), int), fit([Plain("no")], list[str])
    ('12', 12, ['no'])
    """
    if isinstance(value, Plain):
        return _fit_word(value, kind)
    if isinstance(value, list):
        inner = get_args(sequence_of(kind)) or (Any,)
        last = inner[-1] if inner[-1] is not Ellipsis else inner[0]
        return [fit(item, inner[at] if at < len(inner) - 1 else last) for at, item in enumerate(value)]
    if isinstance(value, dict):
        return _fit_mapping(value, kind)
    return value


def _fit_word(word: Plain, kind: Any) -> Any:
    meaning = word.meaning()
    if isinstance(meaning, str):
        return meaning
    for member, _ in alternatives(kind):
        if get_origin(member) is Literal and str(word) in get_args(member):
            return str(word)
    if takes(kind, *_types_of(meaning)):
        return meaning
    return str(word) if takes(kind, str, Path) or section_of(kind) else meaning


def _types_of(meaning: Any) -> tuple[Any, ...]:
    return (int, float) if type(meaning) is int else (type(meaning),)


def _fit_mapping(value: dict[str, Any], kind: Any) -> dict[str, Any]:
    section = section_of(kind)
    if section:
        fields = _fields(section, value)
        return {str(key): fit(item, kind_of(fields[key]) if key in fields else Any) for key, item in value.items()}
    of_key, of_value = get_args(member_of(kind, dict)) or (str, Any)
    return {fit(Plain(key), of_key): fit(item, of_value) for key, item in value.items()}


def _fields(section: type[Section], value: dict[str, Any]) -> dict[str, FieldInfo]:
    name = str(value.get("name"))
    if issubclass(section, Choice) and section.is_family() and name in section.registry:
        section = section.registry[name]
    return section.model_fields


def spell(words: list[str], kind: Any) -> Any:
    """What the words behind a flag mean: lists as `a b c`, `a,b,c` or `[a, b, c]`, mappings as `{a: b}`."""
    from peftkit.config.yaml import parse

    is_list, is_dict = sequence_of(kind) is not None, member_of(kind, dict) is not None or section_of(kind) is not None
    if len(words) > 1:
        return [Plain(part) for word in words for part in _at_commas(word)]
    word = words[0]
    if (is_list and word.startswith("[")) or (is_dict and word.startswith("{")):
        return parse(word, f"{word!r}")
    if is_list and "," in word and (not takes(kind, str) or _is_plain_list(word)):
        return [Plain(part) for part in _at_commas(word)]
    if is_list and not takes(kind, str) and Plain(word).meaning() is not None:
        return [Plain(word)]
    return Plain(word) if word else ""


def _at_commas(word: str) -> list[str]:
    return [part.strip() for part in word.split(",") if part.strip()]


def _is_plain_list(word: str) -> bool:
    # A regular expression may hold commas ({1,2}) as well.
    return all(part.replace("_", "").replace(".", "").replace("-", "").isalnum() for part in _at_commas(word))
