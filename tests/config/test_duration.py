"""Durations: every way to write one, and what is none."""

import pytest
from pydantic import BaseModel, ValidationError

from peftkit.config.duration import Duration


class Plan(BaseModel):
    time: Duration


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("90", 90),
        (3600, 3600),
        ("1.5h", 5400),
        ("1d12h", 129600),
        ("2:00", 7200),
        ("0:00:30", 30),
        ("1-00:00:00", 86400),
    ],
)
def test_it_is_read_as_seconds_and_written_as_a_number(written: str | int, seconds: float) -> None:
    plan = Plan(time=written)  # type: ignore[arg-type]
    assert plan.time == seconds
    assert Plan.model_validate(plan.model_dump(mode="json")) == plan


@pytest.mark.parametrize("written", ["", "soon", "4x", "-5", "0", "h", "1:2:3:4", "inf", True, None])
def test_what_is_no_duration_is_refused_with_an_example(written: object) -> None:
    with pytest.raises(ValidationError, match="4h"):
        Plan(time=written)  # type: ignore[arg-type]
