"""Folders: files by class, files that a table describes, data files, splits."""

from __future__ import annotations

import json

import pytest

from peftkit.data.sources import digest, read
from peftkit.errors import DataError


def fill(folder, files):
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return str(folder)


@pytest.mark.parametrize(("kind", "suffixes"), [("image", (".png", ".JPG")), ("audio", (".wav", ".flac"))])
def test_folders_of_classes_give_paths_and_labels(tmp_path, kind, suffixes):
    names = [f"cat/1{suffixes[0]}", f"cat/2{suffixes[1]}", f"dog/1{suffixes[0]}"]
    place = fill(
        tmp_path, dict.fromkeys(names, "broken, which only its reader finds") | {"README.md": "", "dog/.x": ""}
    )
    table = read(place)
    assert table.rows == [{kind: str(tmp_path / name), "label": name[:3]} for name in names]
    assert table.place(1) == f"{tmp_path.name}/{names[1]}"
    assert table.pick([2, 1]).place(0) == f"{tmp_path.name}/{names[2]}"


def test_what_lies_beside_classes_is_no_row(tmp_path):
    images = fill(tmp_path / "images", {"x/1.png": "", "classes.txt": "x", "labels.csv": "a\n1"})
    texts = fill(tmp_path / "texts", {"x/1.txt": "one", "README.txt": "about"})
    rows = fill(tmp_path / "rows", {"a.jsonl": '{"a": 1}', "notes/1.txt": "one"})
    assert read(images).rows == [{"image": f"{images}/x/1.png", "label": "x"}]
    assert read(texts).rows == [{"text": "one", "label": "x"}]
    assert read(rows).rows == [{"a": 1}]


def test_folders_of_texts_give_whole_texts_and_labels(tmp_path):
    place = fill(tmp_path, {"ham/b.txt": "one\n\ntwo", "ham/a.txt": "x", "spam/c.txt": "\u00fc"})
    assert read(place).rows == [
        {"text": "x", "label": "ham"},
        {"text": "one\n\ntwo", "label": "ham"},
        {"text": "\u00fc", "label": "spam"},
    ]


METADATA = [{"file_name": "a.png", "caption": "x"}, {"file_name": "sub/b.png", "caption": "y"}]
TABLES = {
    "metadata.jsonl": "\n".join(map(json.dumps, METADATA)),
    "metadata.csv": "file_name,caption\na.png,x\nsub/b.png,y\n",
}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_describes_the_files(tmp_path, name):
    table = read(fill(tmp_path, {"a.png": "", "sub/b.png": "", name: TABLES[name]}))
    assert table.rows == [{"image": str(tmp_path / row["file_name"]), "caption": row["caption"]} for row in METADATA]


def test_files_without_classes_have_no_label(tmp_path):
    assert read(fill(tmp_path, {"b.ogg": "", "a.ogg": ""})).rows == [
        {"audio": str(tmp_path / name)} for name in ("a.ogg", "b.ogg")
    ]


def test_data_files_follow_one_another_and_places_name_them(tmp_path):
    place = fill(
        tmp_path, {"b.jsonl": '\n{"a": 3}', "a.jsonl": '{"a": 1}\n{"a": 2}', "README.md": "", ".c.jsonl": "{}"}
    )
    for source in (place, f"{place}/*.jsonl", f"{place}/**/[ab].jsonl"):
        table = read(source)
        assert table.rows == [{"a": 1}, {"a": 2}, {"a": 3}]
        assert [table.place(row) for row in range(3)] == ["a.jsonl line 1", "a.jsonl line 2", "b.jsonl line 2"]
        assert table.pick([2, 0]).place(0) == "b.jsonl line 2"


def test_an_error_in_one_of_several_files_names_it(tmp_path):
    place = fill(tmp_path, {"a.jsonl": '{"a": 1}', "b.jsonl": '{"a": 1}\n{"a": }'})
    with pytest.raises(DataError, match=r"b\.jsonl line 2, column 7: broken JSON"):
        read(place)


@pytest.mark.parametrize(
    "files",
    [
        {"train.jsonl": '{"a": 1}', "my-test-00.jsonl": '{"a": 2}'},
        {"train/a/1.txt": "1", "test/a/1.txt": "2"},
        {"Train/x.csv": "a\n1", "test/x.csv": "a\n2"},
    ],
)
def test_what_names_a_split_is_taken_for_that_split_only(tmp_path, files):
    place = fill(tmp_path, files)
    first, second = read(place).rows, read(place, split="test").rows
    assert len(first) == len(second) == 1 and first != second
    assert read(f"{place}:test").rows == second
    with pytest.raises(DataError, match="split 'validation'"):
        read(place, split="validation")


DEFECTS = {
    "nothing": ({"notes.md": "", "sub/x.py": ""}, r"has no data in it that is read here; it has: sub, notes\.md"),
    "formats": ({"a.csv": "a\n1", "b.jsonl": "{}"}, r"several formats \(1 \.csv, 1 \.jsonl\)"),
    "kinds": ({"x/a.png": "", "y/a.wav": ""}, r"files of several kinds \(audio, image\)"),
    "table without metadata": ({"a.png": "", "labels.csv": "a\n1"}, r"holds both data files .* metadata\.jsonl"),
    "deeper folders": ({"x/a.png": "", "y/z/b.png": ""}, r"folders in its folders of classes \(y/z, \.\.\.\)"),
    "text beside classes": ({"a.txt": "", "x/b.txt": ""}, r"files beside its folders of classes \(a\.txt"),
    "beside classes": ({"a.png": "", "x/b.png": ""}, r"files beside its folders of classes \(a\.png"),
    "file that is not there": (
        {"metadata.csv": "file_name\na.png\nsecret.png\n", "a.png": ""},
        r"/metadata\.csv line 3: the file that it names in 'file_name' is not in the folder",
    ),
    "metadata without names": (
        {"metadata.jsonl": '{"file": "secret"}'},
        r"metadata\.jsonl line 1: no column 'file_name'.*: file$",
    ),
    "encoding": ({"x/a.txt": "\udcff"}, r"a\.txt line 1: byte 0 of the file is not UTF-8"),
    "one without split": (
        {"train.csv": "a\n1", "other.csv": "a\n2"},
        r"some files name a split and other\.csv does not",
    ),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_every_defect_has_its_message(tmp_path, defect):
    files, message = DEFECTS[defect]
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(DataError, match=message) as raised:
        read(str(tmp_path))
    assert "secret" not in str(raised.value)


def test_an_empty_folder_and_a_pattern_without_files_are_said_to_be_so(tmp_path):
    with pytest.raises(DataError, match=r"has no data in it that is read here; it has: nothing"):
        read(str(tmp_path))
    with pytest.raises(DataError, match=r"\*\.jsonl matches no file"):
        read(str(tmp_path / "*.jsonl"))


def test_the_digest_changes_with_contents_and_names_and_not_with_times(tmp_path):
    import os

    place = fill(tmp_path / "a", {"a.txt": "1", "b.txt": "2"})
    first = digest(place)
    os.utime(tmp_path / "a" / "a.txt", (1, 1))
    assert digest(place) == first == digest(fill(tmp_path / "b", {"a.txt": "1", "b.txt": "2"}))
    others = [{"a.txt": "1", "b.txt": "3"}, {"a.txt": "1", "c.txt": "2"}, {"a.txt": "12", "b.txt": ""}]
    digests = [digest(fill(tmp_path / f"other{number}", files)) for number, files in enumerate(others)]
    assert len({first, *digests}) == 4


def test_the_digest_of_images_is_that_of_their_contents_where_they_lie(tmp_path):
    place = fill(tmp_path / "a", {"x/1.png": "1"})
    first = digest(place)
    assert first == digest(place) != digest(fill(tmp_path / "b", {"x/1.png": "1"}))
    fill(tmp_path / "a", {"x/1.png": "22"})
    assert digest(place) != first


def test_what_may_not_be_read_is_said_so(tmp_path):
    import os

    place = fill(tmp_path, {"x/a.jsonl": "{}"})
    (tmp_path / "x").chmod(0)
    is_root = os.geteuid() == 0
    try:
        if is_root:
            os.seteuid(65534)  # root may read everything: for a moment, be nobody
        for source in (f"{place}/x", f"{place}/x/a.jsonl"):
            with pytest.raises(DataError, match=r"may not be read: its permissions"):
                read(source, cache=tmp_path / "cache")
    finally:
        if is_root:
            os.seteuid(0)
        (tmp_path / "x").chmod(0o755)
