"""YAML as settings want it: YAML 1.2 scalars, no duplicate keys, and every mistake with its line.

PyYAML by itself reads YAML 1.1, where `2e-5` is a string and `no` is false.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from peftkit.errors import ConfigError

NULL = re.compile(r"~|null|Null|NULL|")
TRUE = re.compile(r"true|True|TRUE")
FALSE = re.compile(r"false|False|FALSE")
INTEGER = re.compile(r"[-+]?[0-9]+")
OCTAL_OR_HEX = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+")
FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
INFINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")

SCALARS: list[tuple[re.Pattern[str], Callable[[str], Any]]] = [
    (NULL, lambda text: None),
    (TRUE, lambda text: True),
    (FALSE, lambda text: False),
    (INTEGER, lambda text: int(text) if len(text) < 1000 else text),
    (OCTAL_OR_HEX, lambda text: int(text, 0)),
    (FLOAT, float),
    (INFINITE, lambda text: float(text.replace(".", ""))),
]


MOST = 100_000
"""Values in a file: aliases of aliases can stand for billions."""


class Plain(str):
    """A word without quotes: what it means (text, number, true, null) depends on the setting that it is for."""

    __slots__ = ()

    def meaning(self) -> Any:
        """The value that YAML 1.2 sees in it, by itself."""
        for pattern, make in SCALARS:
            if pattern.fullmatch(self):
                return make(self)
        return str(self)


class Key(str):
    """A key that knows its line."""

    line: int


def load(path: Path) -> tuple[dict[str, Any], list[str]]:
    """The mapping in the file, and what is wrong with it although it can be read (keys given twice).

    Keys are `Key`, scalars without quotes are `Plain`. ConfigError names the file, line and column of broken YAML.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as problem:
        raise ConfigError(f"{path} cannot be read: {getattr(problem, 'strerror', None) or problem}") from None
    value, problems = _build(text, str(path))
    if value is None or value == "":
        return {}, problems
    if not isinstance(value, dict):
        raise ConfigError(f"{path} is no mapping: settings are lines of `name: value`, got {text.strip()[:60]!r}")
    return value, problems


def parse(text: str, source: str) -> Any:
    """The value that `text` holds; `source` is what a mistake is reported for."""
    value, problems = _build(text, source)
    if problems:
        raise ConfigError(problems)
    return value


def _build(text: str, source: str) -> tuple[Any, list[str]]:
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as problem:
        said = " ".join(part for part in (problem.context, problem.problem) if part)
        raise ConfigError(f"{source}{_place(problem.problem_mark)}: broken YAML: {said}") from None
    except yaml.YAMLError as problem:
        raise ConfigError(f"{source}: broken YAML: {problem}") from None
    except RecursionError:
        raise ConfigError(f"{source}: lists or mappings in each other, too deep to be settings") from None
    builder = _Builder(source)
    return None if root is None else builder.value(root), builder.problems


def _place(mark: Any) -> str:
    return f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""


class _Builder:
    """Nodes -> values; the mistakes that it meets are collected."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.problems: list[str] = []
        self.open: set[int] = set()
        self.built = 0

    def value(self, node: Any) -> Any:
        if id(node) in self.open:
            return self.refuse(node, "an alias that contains itself")
        self.built += 1
        if self.built > MOST:
            raise ConfigError(f"{self.source}: more than {MOST:,} values, which are no settings (aliases of aliases?)")
        if not node.tag.startswith("tag:yaml.org,2002:") or "python" in node.tag:
            return self.refuse(node, f"the tag {node.tag} is not read here")
        if isinstance(node, yaml.ScalarNode):
            return Plain(node.value) if node.style is None else node.value
        self.open.add(id(node))
        built = self.mapping(node) if isinstance(node, yaml.MappingNode) else [self.value(item) for item in node.value]
        self.open.discard(id(node))
        return built

    def mapping(self, node: yaml.MappingNode) -> dict[str, Any]:
        built: dict[str, Any] = {}
        lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                self.refuse(key_node, "a key is a word, not a list or a mapping")
                continue
            key = Key(key_node.value)
            key.line = key_node.start_mark.line + 1
            if key in lines:
                self.refuse(key_node, f"{key!s} is given twice (first on line {lines[key]})")
            lines[key] = key.line
            built[key] = self.value(value_node)
        return built

    def refuse(self, node: Any, why: str) -> None:
        self.problems.append(f"{self.source}{_place(node.start_mark)}: {why}")


def dump(value: Any) -> str:
    """YAML that this reader, and any of YAML 1.1, reads back as `value`."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=None, width=100)


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    # Words that YAML 1.1 takes for something else are quoted by PyYAML itself; these are YAML 1.2's.
    quotes = None if isinstance(Plain(text).meaning(), str) else "'"
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=quotes)


_Dumper.add_representer(str, _text)
