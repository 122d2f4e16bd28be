"""Imports that cost less: what a library imports for a case that may never come waits until something of it is used.

with deferred("bitsandbytes"):
    import peft             # a second faster; peft's own `bnb.nn.Linear4bit` imports bitsandbytes then
"""

from __future__ import annotations

import gc
import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any


class Deferred(ModuleType):
    """Stands for a module: whatever is asked of it comes from the real one, which is imported for that.

    Of `functions` (what is taken out of it by `from module import name`) the import waits for the first call.
    """

    def __init__(self, spec: ModuleSpec, functions: tuple[str, ...]) -> None:
        super().__init__(spec.name)
        # What asks whether a module is there, or from which file, asks this of all that there are.
        self.__spec__, self.__file__, self.__loader__ = spec, spec.origin, spec.loader
        if spec.submodule_search_locations is not None:
            self.__path__ = spec.submodule_search_locations
        self.__dict__.update({name: _called_later(spec.name, name) for name in functions})

    def __getattr__(self, name: str) -> Any:
        return getattr(_real(self.__name__), name)


@contextmanager
def deferred(name: str, *functions: str) -> Iterator[None]:
    """Meanwhile, `import name` (and `from name import function`) takes no time. A module that is there, or nowhere, is left."""
    spec = None if name in sys.modules else _spec(name)
    if spec is None:
        yield
        return
    standing = sys.modules[name] = Deferred(spec, functions)
    try:
        yield
    finally:
        _leave(standing)


@contextmanager
def uncollected() -> Iterator[None]:
    """Meanwhile nobody looks for garbage: imports make a million objects that stay, and looking is a fifth of their time."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def _real(name: str) -> ModuleType:
    module = sys.modules.get(name)
    if isinstance(module, Deferred):
        _leave(module)
    return importlib.import_module(name)


def _leave(standing: Deferred) -> None:
    """From here on an import means the module itself."""
    if sys.modules.get(standing.__name__) is standing:
        del sys.modules[standing.__name__]


def _spec(name: str) -> ModuleSpec | None:
    package, _, inner = name.partition(".")
    if inner and package not in sys.modules:  # finding it would import its package
        outer = find_spec(package)
        return None if outer is None else ModuleSpec(name, None, origin=outer.origin, is_package=True)
    try:
        return find_spec(name)
    except ImportError:  # the package that it would be in is not there
        return None


def _called_later(module: str, name: str) -> Any:
    def call(*words: Any, **named: Any) -> Any:
        return getattr(_real(module), name)(*words, **named)

    call.__name__ = call.__qualname__ = name
    call.__module__ = module
    return call
