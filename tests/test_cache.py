"""What lies in the cache is whole, made once, and known again."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import sleep

import pytest

from peftkit.cache import cache_root, digest, once


def test_the_root_is_what_is_asked_else_the_environment_else_the_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEFTKIT_CACHE", "/somewhere")
    monkeypatch.setenv("HOME", "/home/me")
    assert cache_root(Path("~/mine")) == Path("/home/me/mine")
    assert cache_root(None) == Path("/somewhere")
    monkeypatch.delenv("PEFTKIT_CACHE")
    assert cache_root(None) == Path("/home/me/.cache/peftkit")


def test_a_folder_is_built_once_however_many_ask(tmp_path: Path) -> None:
    built: list[Path] = []

    def build(folder: Path) -> None:
        built.append(folder)
        sleep(0.05)
        (folder / "file").write_text("whole")

    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: once(tmp_path / "target", build), range(4)))
    assert len(built) == 1
    assert [(folder / "file").read_text() for folder in made] == ["whole"] * 4


def test_a_build_that_fails_leaves_nothing_to_be_taken_for_it(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").write_text("of it")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        once(tmp_path / "target", fail)
    assert not (tmp_path / "target").exists()
    made = once(tmp_path / "target", lambda folder: (folder / "all").touch())
    assert [entry.name for entry in made.iterdir()] == ["all"]


def test_a_digest_is_that_of_the_content_and_follows_a_change(tmp_path: Path) -> None:
    file, root = tmp_path / "file", tmp_path / "root"
    file.write_bytes(b"one")
    assert digest(file, root) == hashlib.sha256(b"one").hexdigest()
    file.write_bytes(b"two")
    os.utime(file, ns=(1, 1))
    assert digest(file, root) == hashlib.sha256(b"two").hexdigest()


def test_a_digest_is_not_computed_again(tmp_path: Path) -> None:
    file, root = tmp_path / "file", tmp_path / "root"
    file.write_bytes(b"one")
    first = digest(file, root)
    stat = file.stat()
    file.write_bytes(b"two")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # the same path, size and time: taken for the same file
    assert digest(file, root) == first
