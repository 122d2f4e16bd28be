"""Files over HTTP (a server on this machine) and of fsspec's other file systems."""

from __future__ import annotations

import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module

import fsspec
import pytest

from peftkit.data.sources import digest, read
from peftkit.errors import DataError
from peftkit.redact import redact

ROWS = [{"text": "a"}, {"text": "b"}]
LINES = '{"text": "a"}\n{"text": "b"}\n'


class Handler(SimpleHTTPRequestHandler):
    """Notes what was fetched, and has a page that is forbidden."""

    fetched: list[str] = []

    def do_GET(self):
        self.fetched.append(self.path)
        super().do_GET()

    def send_head(self):
        if "forbidden" in self.path:
            self.send_error(403)
            return None
        return super().send_head()

    def log_message(self, *_):
        pass


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A folder, the URL under which it is served, and what ends that."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    folder = tmp_path / "served"
    folder.mkdir()
    Handler.fetched.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()

        def stop():
            server.shutdown()
            server.server_close()
            thread.join()

        yield folder, f"http://127.0.0.1:{server.server_port}", stop
        stop()


def test_a_file_is_fetched_once_until_it_changes(served, tmp_path):
    folder, url, _ = served
    (folder / "rows.jsonl").write_text(LINES)
    cache = tmp_path / "cache"
    assert read(f"{url}/rows.jsonl", cache=cache).rows == ROWS
    first = digest(f"{url}/rows.jsonl", cache=cache)
    assert read(f"{url}/rows.jsonl", cache=cache).place(1) == "rows.jsonl line 2"
    assert Handler.fetched.count("/rows.jsonl") == 1
    (folder / "rows.jsonl").write_text(LINES * 2)
    assert read(f"{url}/rows.jsonl", cache=cache).rows == ROWS * 2
    assert digest(f"{url}/rows.jsonl", cache=cache) != first


def test_without_a_network_what_was_fetched_serves(served, tmp_path):
    folder, url, stop = served
    (folder / "rows.csv").write_text("text\na\nb\n")
    source = f"{url}/rows.csv?download=secret"
    assert read(source, cache=tmp_path / "cache").rows == ROWS
    stop()
    assert read(source, cache=tmp_path / "cache").rows == ROWS
    with pytest.raises(DataError, match=r"/rows\.csv cannot be fetched: Cannot connect") as raised:
        read(source, cache=tmp_path / "other")
    assert "secret" not in str(raised.value)


def test_a_url_as_a_run_keeps_it_without_its_secret_finds_what_was_fetched(served, tmp_path):
    folder, url, _ = served
    (folder / "rows.jsonl").write_text(LINES)
    source = f"{url}/rows.jsonl?token=secret"
    first = digest(source, cache=tmp_path), read(source, cache=tmp_path).rows
    assert redact(source).endswith("?token=(hidden)")
    assert (digest(redact(source), cache=tmp_path), read(redact(source), cache=tmp_path).rows) == first


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none.jsonl", r"/none\.jsonl cannot be fetched: it is not there"),
        ("forbidden.jsonl?token=secret", r"/forbidden\.jsonl cannot be fetched: the server answers 403"),
        ("a.html", r"a\.html has a suffix that names no format"),
    ],
)
def test_what_the_server_refuses_is_said_without_secrets(served, tmp_path, name, message):
    folder, url, _ = served
    (folder / "a.html").write_text("x")
    with pytest.raises(DataError, match=message) as raised:
        read(f"{url}/{name}".replace("//127", "//user:secret@127"), cache=tmp_path / "cache")
    assert "secret" not in str(raised.value)


def test_other_file_systems_files_and_patterns(tmp_path):
    memory = fsspec.filesystem("memory")
    memory.pipe({"/room/a.jsonl": LINES.encode(), "/room/b.jsonl": LINES.encode()})
    assert read("memory://room/a.jsonl", cache=tmp_path).rows == ROWS
    table = read("memory://room/*.jsonl", cache=tmp_path)
    assert table.rows == ROWS * 2 and table.place(3) == "/room/b.jsonl line 2"
    with pytest.raises(DataError, match=r"memory://room is a folder; name a file in it, or several: memory://room/\*"):
        read("memory://room", cache=tmp_path)
    with pytest.raises(DataError, match=r"memory://room/\*\.csv matches no file"):
        read("memory://room/*.csv", cache=tmp_path)


def test_a_file_url_is_the_file(tmp_path):
    (tmp_path / "a b.jsonl").write_text(LINES)
    assert read(f"file://{tmp_path}/a%20b.jsonl").rows == ROWS


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    import_module("fsspec.registry")._registry.pop("s3", None)
    with pytest.raises(DataError, match=r"s3://bucket/a\.jsonl needs the package s3fs: pip install s3fs"):
        read("s3://bucket/a.jsonl")


def test_an_unknown_protocol_is_said_to_be_unknown():
    with pytest.raises(DataError, match=r"nosuch://a/b\.jsonl cannot be opened: Protocol not known: nosuch"):
        read("nosuch://a/b.jsonl")
