"""SQuAD's JSON, versions 1 and 2 (Rajpurkar et al., https://rajpurkar.github.io/SQuAD-explorer/): a row a question."""

from __future__ import annotations

from typing import Any

from peftkit.data.sources.table import Numbered
from peftkit.errors import DataError
from peftkit.tasks.base import Row


def is_squad(articles: list[Any]) -> bool:
    return bool(articles) and isinstance(articles[0], dict) and "paragraphs" in articles[0]


def rows(articles: list[Any], name: str) -> Numbered:
    """id, title, context, question, answers {text, answer_start}; both lists are empty where there is no answer."""
    number = 0
    for at, article in enumerate(articles):
        for index, paragraph in enumerate(_list(article, "paragraphs", f"{name} data[{at}]")):
            place = f"{name} data[{at}].paragraphs[{index}]"
            context = _value(paragraph, "context", place)
            for question in _list(paragraph, "qas", place):
                number += 1
                row = _row(question, f"{name} row {number} ({place})")
                yield number, {"id": row["id"], "title": article.get("title"), "context": context, **row}


def _row(question: Any, place: str) -> Row:
    answers = [] if isinstance(question, dict) and question.get("is_impossible") else _list(question, "answers", place)
    return {
        "id": question.get("id"),
        "question": _value(question, "question", place),
        "answers": {name: [_value(answer, name, place) for answer in answers] for name in ("text", "answer_start")},
    }


def _list(value: Any, name: str, place: str) -> list[Any]:
    found = _value(value, name, place)
    if not isinstance(found, list):
        raise DataError(f"{place}: {name!r} is no list")
    return found


def _value(value: Any, name: str, place: str) -> Any:
    if not isinstance(value, dict) or name not in value:
        raise DataError(f"{place}: no {name!r} where SQuAD's JSON has one")
    return value[name]
