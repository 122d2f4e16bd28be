"""As much of Go's text/template as an Ollama template of ours uses, by its documentation (https://pkg.go.dev/text/template)."""

from __future__ import annotations

import json
import re
from typing import Any

ACTION = re.compile(r'(\s*)\{\{-\s((?:"(?:[^"\\]|\\.)*"|[^"])*?)\s?\}\}|\{\{\s((?:"(?:[^"\\]|\\.)*"|[^"])*?)\s\}\}')
"""An action; with a dash, the white space before it goes."""

Nodes = list[Any]


def render(template: str, system: str, messages: list[dict[str, str]]) -> str:
    """What Ollama makes of a conversation: `.System` is what its system messages say, which stand in `.Messages`, too."""
    data = {"System": system, "Messages": [{"Role": one["role"], "Content": one["content"]} for one in messages]}
    tree, rest = parse(tokens(template))
    assert not rest
    return "".join(run(tree, data, {"$": data}))


def tokens(template: str) -> list[tuple[str, str]]:
    found, at = [], 0
    for match in ACTION.finditer(template):
        found += [("text", template[at : match.start()])] if match.start() > at else []
        found.append(("action", match[2] if match[2] is not None else match[3]))
        at = match.end()
    return [*found, *([("text", template[at:])] if at < len(template) else [])]


def parse(left: list[tuple[str, str]]) -> tuple[Nodes, list[tuple[str, str]]]:
    """Nodes up to an `end` or `else`, which is left for the caller."""
    nodes: Nodes = []
    while left:
        kind, word = left[0]
        if kind == "action" and word.split()[0] in ("end", "else"):
            break
        left = left[1:]
        if kind == "action" and word.split()[0] in ("if", "range"):
            node, left = block(word, left)
            nodes.append(node)
        else:
            nodes.append((kind, word))
    return nodes, left


def block(head: str, left: list[tuple[str, str]]) -> tuple[Any, list[tuple[str, str]]]:
    body, left = parse(left)
    word, left = left[0][1], left[1:]
    other: Nodes = []
    if word == "else":
        other, left = parse(left)
        assert left[0][1] == "end"
        left = left[1:]
    elif word.startswith("else if"):
        node, left = block(word.removeprefix("else "), left)
        other = [node]
    return (head, body, other), left


def run(nodes: Nodes, dot: Any, names: dict[str, Any]) -> list[str]:
    said: list[str] = []
    for node in nodes:
        if len(node) == 3:
            said += run_block(node, dot, names)
        elif node[0] == "text":
            said.append(node[1])
        elif set_ := re.fullmatch(r"(\$\w+) :?= (.*)", node[1]):
            names[set_[1]] = value(set_[2], dot, names)
        else:
            said.append(str(value(node[1], dot, names)))
    return said


def run_block(node: Any, dot: Any, names: dict[str, Any]) -> list[str]:
    head, body, other = node
    if head.startswith("if "):
        return run(body if value(head[3:], dot, names) else other, dot, names)
    loop = re.fullmatch(r"range (\$\w+), (\$\w+) := (.*)", head)
    assert loop, head
    said = []
    for number, item in enumerate(value(loop[3], dot, names)):
        names |= {loop[1]: number, loop[2]: item}
        said += run(body, item, names)
    return said


def value(text: str, dot: Any, names: dict[str, Any]) -> Any:
    """Constants, fields, variables, and the functions eq, ne, and, not, len, slice."""
    words = split(text)
    if len(words) > 1:
        given = [value(word, dot, names) for word in words[1:]]
        functions = {
            "eq": lambda a, b: a == b, "ne": lambda a, b: a != b, "and": lambda a, b: a and b, "not": lambda a: not a,
            "len": len, "slice": lambda items, start: items[start:],
        }  # fmt: skip
        return functions[words[0]](*given)
    word = words[0]
    if word.startswith("("):
        return value(word[1:-1], dot, names)
    if word[0] in '"0123456789' or word in ("true", "false"):
        return json.loads(word)
    holder, _, field = word.partition(".")
    found = names[holder] if holder else dot
    return found[field] if field else found


def split(text: str) -> list[str]:
    """Words of an action; what stands in brackets or quotes is one."""
    found, depth, word, quoted = [], 0, "", False
    for at, letter in enumerate(text):
        quoted ^= letter == '"' and text[at - 1] != "\\"
        depth += 0 if quoted else {"(": 1, ")": -1}.get(letter, 0)
        if letter == " " and not depth and not quoted:
            found.append(word)
            word = ""
        else:
            word += letter
    return [*found, word]
