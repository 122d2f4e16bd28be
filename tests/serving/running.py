"""Tiny models as if trained and exported, and a service of them in this process, on a free port."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx2 as httpx
import pytest
import uvicorn

from peftkit.engine.world import joined
from peftkit.evaluation import fresh
from peftkit.flows import certify
from peftkit.flows.export import export
from peftkit.flows.predict import Asked as Predicted
from peftkit.flows.predict import predict
from peftkit.flows.serve import Asked, opened
from peftkit.serving import server
from peftkit.serving.app import application
from peftkit.serving.service import Service, service_of
from tests.flows.test_export import trained_run

QUESTIONS = [
    "What is the capital of France?",
    "sum",
    "The quick brown fox jumps over the lazy dog while the small cat sleeps",
    "Write a function that returns the sum of two numbers",
    "0 1 2 3 4 5 6 7 8 9",
    "loud film",
]
"""Of very different lengths."""


@dataclass
class Running:
    """A service that takes requests."""

    url: str
    service: Service

    def post(self, path: str, body: Any, **words: Any) -> httpx.Response:
        return httpx.post(self.url + path, json=body, timeout=60, **words)


@contextmanager
def running(
    folders: Mapping[str, Path], key: str | None = None, only_here: bool = True, **settings: Any
) -> Iterator[Running]:
    """A service of these folders; `settings` are those of `flows.serve.Asked`."""
    asked = Asked(folders=folders, port=0, **settings)
    with joined() as world:
        service = service_of(opened(asked, world), asked.limits, asked.max_queue)
    with listening(service, key, only_here) as url:
        yield Running(url, service)


@contextmanager
def listening(service: Service, key: str | None = None, only_here: bool = True) -> Iterator[str]:
    """The service's address, while it runs in a thread."""
    socket, ready, made = server.bound("127.0.0.1", 0), threading.Event(), []
    begin = uvicorn.Server.__init__

    def kept(self: uvicorn.Server, *words: Any) -> None:
        begin(self, *words)
        made.append(self)

    app = application(service, key, only_here)
    thread = threading.Thread(target=server.run, args=(app, service, socket, 5, ready.set), daemon=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(uvicorn.Server, "__init__", kept)
        thread.start()
        assert ready.wait(30)
    try:
        yield f"http://127.0.0.1:{socket.getsockname()[1]}"
    finally:
        made[0].should_exit = True
        thread.join(30)
        assert not thread.is_alive()


def exported(run: Path, to: str) -> Path:
    """The run's export, compared with what was trained in this process, which saves the seconds of a fresh one."""

    def here(exporter: Any, folder: Path, reading: Any, errand: Any, device: str) -> fresh.Report:
        with TemporaryDirectory() as desk:
            fresh.write_request(Path(desk), exporter, folder, reading, errand, device)
            fresh.main(Path(desk))
            return fresh.read_report(Path(desk))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(certify, "ask_fresh_process", here)
        return export(run, to=to)


def chat_run(folder: Path, base: Path | None = None, **settings: Any) -> Path:
    """A run of the task chat, whose weights were moved so far that it says something else after each question."""
    folder.mkdir()
    rows = [{"prompt": f"{question} {number}", "response": "yes"} for number, question in enumerate(QUESTIONS * 2)]
    write(folder / "chats.jsonl", rows)
    data = {"train": str(folder / "chats.jsonl"), "holdout": 0.5, "cache": str(folder / "cache")}
    own = {"task": "chat", "data": data, "generate": {"max_new_tokens": 20}, "strategy": "lora", **settings}
    found, _ = trained_run(folder, **own, **({"model": {"path": str(base)}} if base else {}))
    return Path(found.path)


def predicted(place: Path, rows: Sequence[dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    """What `peftkit predict` answers."""
    write(folder / "asked.jsonl", rows)
    out = folder / "answers.jsonl"
    out.unlink(missing_ok=True)
    predict(place, Predicted(str(folder / "asked.jsonl"), out))
    return [json.loads(line) for line in out.read_text().splitlines()]


def write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def uploading(row: dict[str, Any]) -> dict[str, Any]:
    """The row as a request brings it: the bytes of an image's or a sound's file, not its path."""
    files = {name: Path(row[name]) for name in ("image", "audio") if isinstance(row.get(name), str)}
    return {**row, **{name: base64.b64encode(file.read_bytes()).decode() for name, file in files.items()}}


def alike(found: Any, expected: Any) -> bool:
    """Equal, but for the last digits of numbers, which hang on who is in the same batch."""
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(alike(found[name], expected[name]) for name in found)
    if isinstance(expected, list):
        return len(found) == len(expected) and all(map(alike, found, expected))
    return bool(found == (pytest.approx(expected, rel=1e-3, abs=1e-5) if isinstance(expected, float) else expected))
