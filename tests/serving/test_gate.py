"""What does not get in: no key, no JSON, too much, too slow, from a page elsewhere."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import httpx2 as httpx
import pytest

from peftkit.serving.gate import Limits
from tests.serving.conftest import Chats
from tests.serving.running import QUESTIONS, Running, running

KEY = "a-secret-key"
BODY: dict[str, Any] = {"messages": [{"role": "user", "content": QUESTIONS[1]}], "max_tokens": 4}
PATH = "/v1/chat/completions"


@pytest.fixture(scope="module")
def locked(chats: Chats) -> Iterator[Running]:
    with running({"two": chats.two, "one": chats.one}, key=KEY, limits=Limits(max_body=2000, timeout=1.0)) as found:
        yield found


def test_a_key_is_asked_for(locked: Running) -> None:
    body = {**BODY, "model": "one"}
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": KEY}, {"Authorization": f"Basic {KEY}"}):
        for path in (PATH, "/metrics", "/openapi.json", "/nowhere"):
            found = locked.post(path, body, headers=headers)
            assert found.status_code == 401
            assert found.json()["error"]["type"] == "authentication_error"
            assert KEY not in found.text
    assert locked.post(PATH, body, headers={"Authorization": f"Bearer {KEY}"}).status_code == 200
    assert httpx.get(f"{locked.url}/").status_code == httpx.get(f"{locked.url}/health").status_code == 200


def locked_post(locked: Running, **words: Any) -> httpx.Response:
    headers = {"Authorization": f"Bearer {KEY}", **words.pop("headers", {})}
    return httpx.post(locked.url + PATH, headers=headers, timeout=10, **words)


def test_what_is_no_json_is_refused(locked: Running) -> None:
    content = json.dumps(BODY)
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""):
        assert locked_post(locked, content=content, headers={"Content-Type": kind}).status_code == 415
    json_kind = {"Content-Type": "application/json; charset=utf-8"}
    for broken in ("{", "", "[1]", '"x"', "null", "\x00", b"\xff\xfe", '{"messages": "' + "\\ud800" + '"}', "[" * 900):
        found = locked_post(locked, content=broken, headers=json_kind)
        assert found.status_code == 400, (broken, found.text)
        assert found.json()["error"]["message"]
    torn = content.replace(QUESTIONS[1], "\\ud800")
    found = locked_post(locked, content=torn.replace("{", '{"model": "one", ', 1), headers=json_kind)
    assert found.status_code == 400, found.text


def test_what_is_too_large_is_refused_before_it_is_read(locked: Running) -> None:
    large = {**BODY, "model": "x" * 2000}
    assert locked_post(locked, json=large).status_code == 413
    chunks = iter([b"x" * 500] * 8)  # nothing says how much it will be
    found = locked_post(locked, content=chunks, headers={"Content-Type": "application/json"})
    assert found.status_code == 413
    assert "2000 bytes" in found.json()["error"]["message"]


def test_who_sends_too_slowly_is_let_go(locked: Running) -> None:
    host, port = locked.url.removeprefix("http://").split(":")
    head = f"POST {PATH} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {KEY}\r\nContent-Type: application/json\r\n"
    with socket.create_connection((host, int(port)), timeout=10) as slow:
        slow.sendall(f"{head}Content-Length: 100\r\n\r\n{{".encode())
        begun = time.monotonic()
        assert slow.recv(100).startswith(b"HTTP/1.1 408")
        assert time.monotonic() - begun >= 0.9


def test_who_leaves_while_sending_leaves_nothing(locked: Running) -> None:
    host, port = locked.url.removeprefix("http://").split(":")
    head = f"POST {PATH} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {KEY}\r\nContent-Type: application/json\r\n"
    for _ in range(5):
        with socket.create_connection((host, int(port)), timeout=10) as leaving:
            leaving.sendall(f"{head}Content-Length: 100\r\n\r\n{{".encode())
    assert locked_post(locked, json={**BODY, "model": "one"}).status_code == 200


def test_a_page_of_another_name_may_not_ask_without_a_key(chatting: Running) -> None:
    body = {**BODY, "model": "one"}
    assert chatting.post(PATH, body, headers={"Host": "evil.example"}).status_code == 400
    assert chatting.post(PATH, body, headers={"Host": "localhost:1234"}).status_code == 200
    preflight = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    found = httpx.options(chatting.url + PATH, headers=preflight)
    assert "access-control-allow-origin" not in found.headers
    assert found.status_code == 405
