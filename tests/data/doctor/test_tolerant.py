"""Files of lines are read on after lines that do not parse, and every row keeps its line's number."""

from __future__ import annotations

from pathlib import Path

import pytest

from peftkit.data.doctor.tolerant import read_lines

CASES = {
    "a.jsonl": (b'{"a": 1}\n\n{"a": \n[1]\n{"a": 2}', {1: {"a": 1}, 5: {"a": 2}}, [3, 4], []),
    "a.csv": (
        b'\xef\xbb\xbfa,b\n1,"x\ny"\n2\n3,"open\n4,z\n5,"x"y\n6,ok\n',
        {2: {"a": "1", "b": "x\ny"}, 6: {"a": "4", "b": "z"}, 8: {"a": "6", "b": "ok"}},
        [4, 5, 7],
        [],
    ),
    "a.tsv": (b"a\tb\n1\t2\n1\t2\t3\n", {2: {"a": "1", "b": "2"}}, [3], []),
    "a.txt": (
        "naïve\n".encode() + b"\n" + "café ä".encode("cp1252"),
        {1: {"text": "naïve"}, 3: {"text": "café ä"}},
        [],
        [3],
    ),
    "b.txt": ("one\ntwo\n".encode("utf-16"), {1: {"text": "one"}, 2: {"text": "two"}}, [], [1, 2]),
    "c.txt": ("schön ".encode() + b"caf\xe9", {1: {"text": "schön café"}}, [], [1]),
}


@pytest.mark.parametrize("name", CASES)
def test_rows_broken_lines_and_other_encodings(name: str, tmp_path: Path) -> None:
    data, rows, broken, recoded = CASES[name]
    (tmp_path / name).write_bytes(data)
    found = read_lines(tmp_path / name)
    assert dict(zip(found.numbers, found.rows, strict=True)) == rows
    assert ([number for number, _ in found.broken], found.recoded) == (broken, recoded)


def test_the_limit_counts_rows(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"a": 1}\n{\n{"a": 2}\n{"a": 3}\n{"a": "\xe9"}\n')
    found = read_lines(tmp_path / "a.jsonl", 2)
    assert (found.numbers, [number for number, _ in found.broken], found.recoded) == ([1, 3], [2], [])
