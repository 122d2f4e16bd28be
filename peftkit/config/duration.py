"""A length of time as people write it: 90m, 4h, 1-12:00:00, 3600."""

from __future__ import annotations

import re
from typing import Any

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
EXAMPLES = "a time such as 90m, 4h, 1d12h, 1-12:00:00 or 3600 (seconds)"
UNIT_PARTS = re.compile(r"(?:\d+(?:\.\d+)?[smhd])+")
CLOCK = re.compile(r"(?:(?P<days>\d+)-)?(?P<hours>\d+):(?P<minutes>\d\d)(?::(?P<seconds>\d\d))?")


class Duration(float):
    """Seconds, above 0.

    >>> Duration.read("1h30m"), Duration.read("1-00:00:00"), Duration.read(90)
    (5400.0, 86400.0, 90.0)
    """

    @classmethod
    def read(cls, value: Any) -> Duration:
        """Raises PydanticCustomError, which settings tell as their own error."""
        seconds = value if isinstance(value, (int, float)) and not isinstance(value, bool) else _seconds(str(value))
        if seconds is None or not 0 < seconds < float("inf"):
            raise PydanticCustomError("value_error", "{text}", {"text": f"takes {EXAMPLES}; got {value}"})
        return cls(seconds)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        plain = core_schema.plain_serializer_function_ser_schema(
            lambda value: int(value) if value == int(value) else float(value)
        )
        numbers = core_schema.float_schema(gt=0)
        return core_schema.no_info_plain_validator_function(
            cls.read, json_schema_input_schema=numbers, serialization=plain
        )


def _seconds(text: str) -> float | None:
    """
    >>> _seconds("1d12h"), _seconds("12:30:00"), _seconds("soon")
    (129600.0, 45000.0, None)
    """
    text = text.strip().lower()
    if re.fullmatch(r"\d+(?:\.\d+)?", text):
        return float(text)
    if UNIT_PARTS.fullmatch(text):
        return sum(float(number) * UNITS[unit] for number, unit in re.findall(r"([\d.]+)([smhd])", text))
    if found := CLOCK.fullmatch(text):
        days, hours, minutes, seconds = (float(found[name] or 0) for name in ("days", "hours", "minutes", "seconds"))
        return days * 86400 + hours * 3600 + minutes * 60 + seconds
    return None
