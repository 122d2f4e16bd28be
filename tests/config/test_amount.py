"""Amounts of memory as people write them."""

import pytest
from pydantic import ValidationError

from peftkit.config.amount import Amount
from peftkit.config.run import Run


@pytest.mark.parametrize(
    ("written", "size"),
    [("10GB", 10**10), ("1.5 GiB", 3 * 2**29), ("500mb", 5 * 10**8), ("7", 7), (7, 7), ("0", 0), ("2TB", 2 * 10**12)],
)
def test_it_is_bytes(written: object, size: int) -> None:
    assert Amount.read(written) == size


@pytest.mark.parametrize("written", ["much", "-1GB", "1 GBit", True, ""])
def test_what_is_none_is_told(written: object) -> None:
    strategy = {"name": "layerwise", "cache_trunk": True, "cache_budget": written}
    with pytest.raises(ValidationError, match="takes an amount such as 10GB"):
        Run.model_validate({"strategy": strategy})
