"""What is written appears complete or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from peftkit import atomic
from peftkit.atomic import put_in_place, recover, remove, write_whole


def folder_with(path: Path, content: str) -> Path:
    path.mkdir(parents=True)
    (path / "file").write_text(content)
    return path


def test_what_cannot_be_written_leaves_the_old_content(tmp_path: Path) -> None:
    write_whole(tmp_path / "a.json", "old")
    with pytest.raises(UnicodeEncodeError):
        write_whole(tmp_path / "a.json", "new \ud800")
    assert (tmp_path / "a.json").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("exchanges", [True, False])
def test_a_folder_takes_anothers_place(exchanges: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not exchanges:  # as on NFS
        monkeypatch.setattr(atomic, "_exchanged", lambda one, other: False)
    for content in ("first", "second"):
        put_in_place(folder_with(tmp_path / "made", content), tmp_path / "folder")
        assert (tmp_path / "folder/file").read_text() == content
        assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_where_names_can_change_places_there_is_no_moment_without_the_folder(tmp_path: Path) -> None:
    one, other = folder_with(tmp_path / "one", "1"), folder_with(tmp_path / "other", "2")
    assert atomic._exchanged(one, other), "Linux's local file systems can"
    assert ((one / "file").read_text(), (other / "file").read_text()) == ("2", "1")


def test_killed_between_the_two_renames_the_old_one_comes_back(tmp_path: Path) -> None:
    folder_with(tmp_path / "folder.old", "old")
    recover(tmp_path / "folder")
    assert (tmp_path / "folder/file").read_text() == "old"
    folder_with(tmp_path / "folder.old", "older")
    recover(tmp_path / "folder")
    assert (tmp_path / "folder/file").read_text() == "old", "killed after them"
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_what_is_half_deleted_has_another_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_with(tmp_path / "folder", "doomed")

    def killed(path: Path, **how: object) -> None:
        if path.exists():
            raise KeyboardInterrupt

    monkeypatch.setattr(atomic.shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        remove(folder, ".gone")
    assert [path.name for path in tmp_path.iterdir()] == ["folder.gone"]
    monkeypatch.undo()
    remove(folder_with(tmp_path / "folder", "doomed"), ".gone")
    assert not list(tmp_path.iterdir())
