"""The list of submitted jobs: what is entered is found again, and what is damaged hides nothing else."""

from pathlib import Path

import pytest

from peftkit.slurm import ledger
from peftkit.slurm.ledger import Entry, enter, entries, forget, split


@pytest.fixture(autouse=True)
def _own_ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEFTKIT_CACHE", str(tmp_path))


def test_what_is_entered_is_found_in_order_of_time():
    second = Entry("7", "/runs/b", "export", after="8", submitted=2.0)
    first = Entry("8", "/runs/a", tasks=("/runs/a/0", "/runs/a/1"), submitted=1.0)
    enter(second)
    enter(first)
    assert entries() == [first, second]
    forget(["8"])
    assert entries() == [second]


def test_an_array_is_its_tasks():
    entry = Entry("8", "/runs", tasks=("/runs/0", "/runs/1"), after="3", submitted=1.0)
    assert split(entry) == [
        Entry("8_0", "/runs/0", after="3", submitted=1.0),
        Entry("8_1", "/runs/1", after="3", submitted=1.0),
    ]
    alone = Entry("9", "/runs/x")
    assert split(alone) == [alone]


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"job": "../x", "run": "/r"}', '{"job": 7, "run": "/r"}', '{"job": "7"}']
)
def test_a_damaged_file_is_passed_over(text, tmp_path):
    enter(Entry("8", "/runs/a"))
    (tmp_path / "jobs/7.json").write_text(text)
    assert [entry.job for entry in entries()] == ["8"]


def test_a_file_of_a_later_version_is_read(tmp_path):
    enter(Entry("8", "/runs/a", submitted=1.0))
    file = tmp_path / "jobs/8.json"
    file.write_text(file.read_text().replace("{", '{"colour": "red",', 1))
    assert entries() == [Entry("8", "/runs/a", submitted=1.0)]
    assert ledger.JOB.fullmatch("8_1")
