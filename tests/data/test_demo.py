"""The embedded rows: functions without their docstrings, the same every time."""

from __future__ import annotations

import ast

from peftkit.data import demo


def test_there_are_as_many_rows_as_promised_and_no_answer_is_in_two_splits():
    tables = demo.tables()
    answers = {name: {row["response"] for row in table.rows} for name, table in tables.items()}
    assert {name: len(found) for name, found in answers.items()} == {"train": 400, "validation": 64}
    assert not answers["train"] & answers["validation"]
    assert demo.tables()["train"].rows == tables["train"].rows
    assert "standard library" in tables["train"].name


def test_every_prompt_is_a_function_without_its_answer():
    for row in demo.tables()["validation"].rows:
        code = row["prompt"].removeprefix(demo.INSTRUCTION).removeprefix("```python\n").removesuffix("\n```")
        (function,) = ast.parse(code).body
        assert ast.get_docstring(function) is None
        assert row["response"] not in code


SOURCE = '''
class Shelf:
    @property
    def width(self):
        """Return the width in metres.

        More words.
        """

        return self._width

    def bare(self):
        """Documented, but nothing else."""

    def vague(self):
        """no capital, no end"""
        return 1
'''


def test_only_functions_with_a_body_and_a_whole_sentence_are_taken():
    assert list(demo.rows_of(SOURCE)) == [
        {
            "prompt": demo.INSTRUCTION + "```python\n@property\ndef width(self):\n    return self._width\n```",
            "response": "Return the width in metres.",
        }
    ]
