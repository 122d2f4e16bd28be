"""Deferred imports: nothing is imported before something is used, and what is used then is the real thing."""

import gc
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from peftkit.lazy import deferred, uncollected


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    (tmp_path / "slow_library").mkdir()
    (tmp_path / "slow_library" / "__init__.py").write_text("VALUE = [1]\ndef double(x):\n    return 2 * x\n")
    (tmp_path / "user_of_it.py").write_text(
        "import slow_library as slow\nfrom slow_library import double\ndef value():\n    return slow.VALUE\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield "slow_library"
    for name in ("slow_library", "user_of_it"):
        sys.modules.pop(name, None)


def test_it_is_imported_at_its_first_use(library: str) -> None:
    with deferred(library, "double"):
        user = importlib.import_module("user_of_it")
    assert library not in sys.modules
    value = user.value()
    assert value is sys.modules[library].VALUE
    assert user.value() is value


def test_a_function_taken_out_of_it_imports_when_it_is_called(library: str) -> None:
    with deferred(library, "double"):
        user = importlib.import_module("user_of_it")
    assert library not in sys.modules
    assert user.double(21) == 42
    assert library in sys.modules


def test_who_looks_through_all_modules_imports_nothing(library: str) -> None:
    with deferred(library):
        assert importlib.util.find_spec(library) is not None
        inspect.getmodule(test_who_looks_through_all_modules_imports_nothing, "nowhere.py")
        assert type(sys.modules[library]).__name__ == "Deferred"


def test_used_within_the_block_it_is_there_at_once(library: str) -> None:
    with deferred(library, "double"):
        user = importlib.import_module("user_of_it")
        assert user.value() == [1]
        assert type(sys.modules[library]).__name__ == "module"
    assert library in sys.modules


def test_what_is_there_or_nowhere_is_left_alone(library: str) -> None:
    real = importlib.import_module(library)
    with deferred(library):
        assert sys.modules[library] is real
    with deferred("no_such_library"), deferred("no_such_library.inside"), pytest.raises(ImportError):
        importlib.import_module("no_such_library")


def test_garbage_is_collected_again_afterwards() -> None:
    with uncollected():
        assert not gc.isenabled()
        with uncollected():
            pass
        assert not gc.isenabled()
    assert gc.isenabled()
