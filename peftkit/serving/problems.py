"""Why a request is not answered: a status, a kind and a sentence, in the shape that OpenAI's clients read."""

from __future__ import annotations

from typing import Any

KINDS = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


class AskedError(Exception):
    """A request that cannot be answered as it is, through its own fault."""

    def __init__(self, text: str, param: str | None = None, code: str | None = None, status: int = 400) -> None:
        self.param, self.code, self.status = param, code, status
        super().__init__(text)


def shaped(status: int, text: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """`{"error": {message, type, param, code}}`."""
    kind = KINDS.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": text, "type": kind, "param": param, "code": code}}
