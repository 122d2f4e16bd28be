"""An amount of memory or disk as people write it: 10GB, 500MB, 1.5GiB, 1000000."""

from __future__ import annotations

import re
from typing import Any

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
UNITS |= {"kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}
EXAMPLES = "an amount such as 10GB, 500MB, 1.5GiB or 1000000 (bytes)"
WRITTEN = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]*)")


class Amount(int):
    """Bytes, 0 or more.

    >>> Amount.read("10GB"), Amount.read("1.5 GiB"), Amount.read(4096)
    (10000000000, 1610612736, 4096)
    """

    @classmethod
    def read(cls, value: Any) -> Amount:
        """Raises PydanticCustomError, which settings tell as their own error."""
        written = WRITTEN.fullmatch(str(value).strip().lower()) if not isinstance(value, bool) else None
        if written is None or written[2] not in UNITS:
            raise PydanticCustomError("value_error", "{text}", {"text": f"takes {EXAMPLES}; got {value}"})
        return cls(float(written[1]) * UNITS[written[2]])

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        plain = core_schema.plain_serializer_function_ser_schema(int)
        numbers = core_schema.int_schema(ge=0)
        return core_schema.no_info_plain_validator_function(
            cls.read, json_schema_input_schema=numbers, serialization=plain
        )
