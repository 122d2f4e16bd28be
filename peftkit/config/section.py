"""The two shapes of a setting: a section (frozen fields) and a choice (a section with a name and a behaviour)."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from typing import Any, ClassVar, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    GetJsonSchemaHandler,
    ModelWrapValidatorHandler,
    model_serializer,
    model_validator,
)
from pydantic_core import CoreSchema, PydanticCustomError

from peftkit.registry import Registry


class Section(BaseModel):
    """A frozen group of settings. The docstring under a field is its `--help`, its documentation and its schema.

    `shorthand` names the field that a bare value sets: `--model PATH` is `--model.path PATH`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, protected_namespaces=())
    shorthand: ClassVar[str | None] = None

    @model_validator(mode="before")
    @classmethod
    def _read_shorthand(cls, value: Any) -> Any:
        if cls.shorthand and not isinstance(value, (dict, BaseModel)) and value is not None:
            return {cls.shorthand: value}
        return value

    @classmethod
    def docs(cls) -> dict[str, str]:
        """The docstring under each field, read from the sources when asked for (pydantic reads them at every import)."""
        classes = [one for one in reversed(cls.__mro__) if issubclass(one, Section)]
        return {field: text for one in classes for field, text in _docs_below(one).items() if field in cls.model_fields}

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        schema = handler.resolve_ref_schema(handler(core_schema))
        for field, text in cls.docs().items():
            schema.get("properties", {}).get(field, {})["description"] = text
        return schema

    def conflicts(self, run: Any) -> Iterator[str]:
        """What in the rest of the run does not go with this section, a sentence each, naming the flags."""
        return iter(())


@cache
def _docs_below(section: type[Section]) -> dict[str, str]:
    try:
        source = ast.parse(textwrap.dedent(inspect.getsource(section)))
    except (OSError, SyntaxError):  # made without a source file
        return {}
    docs = {}
    for field, below in pairwise(getattr(source.body[0], "body", [])):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(below, ast.Expr):
            docs[field.target.id] = inspect.cleandoc(str(getattr(below.value, "value", "")))
    return docs


class Choice(Section):
    """One frozen object that is settings, registered name and behaviour.

    A family (`Strategy`, `Task`, ...) subclasses this with `kind=`; a choice subclasses its family with `name=`:

        class Strategy(Choice, kind="strategy", default="lora"): ...
        class Lora(Strategy, name="lora"):
            rank: PositiveInt = 16
    """

    registry: ClassVar[Registry[Any]]
    kind: ClassVar[str]
    default: ClassVar[str]
    name: ClassVar[str] = ""
    shorthand: ClassVar[str | None] = "name"

    def __init_subclass__(cls, **words: Any) -> None:
        super().__init_subclass__()  # pydantic hands `name=` and `kind=` to the method below as well

    @classmethod
    def __pydantic_init_subclass__(
        cls, *, name: str | None = None, kind: str | None = None, default: str = "", **rest: Any
    ) -> None:
        super().__pydantic_init_subclass__(**rest)
        if kind:
            cls.kind, cls.default = kind, default
            cls.registry = Registry[Any](kind, group=f"peftkit.{plural(kind)}")
        elif name:
            cls.name = name
            cls.registry.add(name, cls)

    @classmethod
    def is_family(cls) -> bool:
        """Whether this class stands for all of its registry (`Strategy`) and not for one of it (`Lora`)."""
        return not cls.name

    @classmethod
    def from_word(cls, word: str) -> dict[str, Any]:
        """The settings that a word by itself stands for: those of the choice that has this name."""
        return {"name": word}

    @model_validator(mode="wrap")
    @classmethod
    def _read_choice(cls, value: Any, handler: ModelWrapValidatorHandler[Self]) -> Any:
        if isinstance(value, str):
            value = cls.from_word(value)
        if isinstance(value, dict):
            value = dict(value)
            name = value.pop("name", cls.name or cls.default)
            if cls.is_family():
                return _look_up(cls, name).model_validate(value)
            if name != cls.name:
                raise PydanticCustomError("wrong_name", f"{name!r} is not {cls.name!r}")
        return handler(value)

    @model_serializer(mode="wrap")
    def _write_name(self, handler: Any) -> dict[str, Any]:
        return {"name": self.name, **handler(self)}


def _look_up(family: type[Choice], name: Any) -> type[Choice]:
    try:
        choice: type[Choice] = family.registry[name]
    except (KeyError, TypeError) as problem:
        text = str(problem.args[0]) if isinstance(problem, KeyError) else f"a {family.kind}'s name is a word"
        raise PydanticCustomError("unknown_choice", "{text}", {"text": text}) from None
    return choice


def plural(kind: str) -> str:
    """`strategy` -> `strategies`."""
    return kind[:-1] + "ies" if kind.endswith("y") else kind + "s"
