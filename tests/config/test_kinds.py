"""What a setting may be, in plain words."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from peftkit.config.kinds import describe
from peftkit.metrics import Metric


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (PositiveInt, "a whole number above 0"),
        (NonNegativeInt, "a whole number from 0 up"),
        (PositiveFloat | None, "a number above 0 or null"),
        (NonNegativeFloat, "a number from 0 up"),
        (Annotated[float, Field(ge=0, lt=1)], "a number from 0 to below 1"),
        (Annotated[float, Field(gt=0, le=1)], "a number above 0 and up to 1"),
        (Annotated[float, Field(ge=0, le=1)] | None, "a number from 0 to 1 or null"),
        (Annotated[int, Field(lt=5)], "a whole number below 5"),
        (bool, "true or false"),
        (Path | None, "a path or null"),
        (Literal["a", "b"], "one of a, b"),
        (list[str] | str, "a list of words or text"),
        (list[PositiveInt] | None, "a list of whole numbers above 0 or null"),
        (dict[str, PositiveFloat], "a mapping of words to numbers above 0, as in '{a: b}'"),
        (tuple[float, float], "2 numbers"),
        (int | str | None, "a whole number, text or null"),
        (Any, "any value"),
    ],
)
def test_described(kind, words):
    assert describe(kind) == words


def test_a_choice_is_one_of_its_names():
    assert describe(Metric) == f"one of {', '.join(Metric.registry)}"
    assert describe(list[Metric]) == f"a list of names among {', '.join(Metric.registry)}"
