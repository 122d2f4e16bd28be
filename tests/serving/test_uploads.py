"""What a request may bring, and what it may not name."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from peftkit.serving.problems import AskedError
from peftkit.serving.uploads import uploaded

PNG = b"\x89PNG\r\n\x1a\nrest"


def test_bytes_are_read() -> None:
    content = base64.b64encode(PNG).decode()
    for value in (content, f"data:image/png;base64,{content}", {"bytes": content}):
        assert uploaded({"image": value, "id": 3}, "image") == {"image": {"bytes": PNG}, "id": 3}
    assert uploaded({"image": [[1, 2], [3, 4]]}, "image") == {"image": [[1, 2], [3, 4]]}
    sound = {"array": [0.0, 0.1], "sampling_rate": 16_000}
    assert uploaded({"audio": sound}, "audio") == {"audio": sound}
    assert uploaded({"text": "/etc/passwd"}, "text") == {"text": "/etc/passwd"}
    assert uploaded({"image": None}, "image") == {"image": None}


@pytest.mark.parametrize(
    "value",
    [
        *(
            "/etc/passwd",
            "picture.png",
            "http://127.0.0.1/x.png",
            "file:///etc/passwd",
            "data:,/etc/passwd",
            "",
            5,
            True,
        ),
        *(
            {"path": "/etc/passwd"},
            {"bytes": None, "path": "/etc/passwd"},
            {"bytes": "/etc/passwd"},
            {"array": "/etc/passwd"},
        ),
        *({"path": "/x", "array": [1.0]}, base64.b64encode(b"%!PS-Adobe-3.0 EPSF-3.0").decode(), "QUJD"),
    ],
)
def test_nothing_else_is(value: Any) -> None:
    for kind in ("image", "audio"):
        with pytest.raises(AskedError) as problem:
            uploaded({kind: value}, kind)
        assert "passwd" not in str(problem.value)
