"""Layers of settings -> one tree of values, and where each came from: a higher layer wins, a new choice starts afresh."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

from peftkit.config.flags import Path, families
from peftkit.config.kinds import describe, fit, is_switch, kind_of, member_of, section_of, sequence_of, spell
from peftkit.config.section import Choice, Section
from peftkit.config.words import Said
from peftkit.config.yaml import Key, Plain
from peftkit.errors import ConfigError
from peftkit.registry import did_you_mean, nearest


@dataclass(frozen=True)
class Setting:
    """One setting as it was given. `path` is relative to the section at hand, `full` to the run."""

    path: Path
    value: Any
    full: Path
    source: str = ""
    """The file it stands in; empty for a flag."""
    line: int = 0

    @property
    def name(self) -> str:
        negated = isinstance(self.value, Said) and self.value.negated
        return ("no-" if negated else "") + ".".join(self.full)

    def shown(self, name: str) -> str:
        """A setting's name as it is written where this one stands."""
        return name if self.source else f"--{name}"

    def __str__(self) -> str:
        if self.name.startswith("-"):
            return self.name  # one dash, as it was typed
        line = f", line {self.line}" if self.line else ""
        return f"{self.source}{line}: {self.name}" if self.source else f"--{self.name}"

    def below(self) -> Setting:
        return replace(self, path=self.path[1:])


Layer = list[Setting]


class Settled:
    """What all layers together say, before it is checked against kinds and limits."""

    def __init__(self, root: type[Section], layers: Sequence[Layer]) -> None:
        self.problems: list[str] = []
        self.unknown: list[Setting] = []
        self.unclear: set[str] = set()
        """Names whose value could not be settled, so that what follows from them is not known."""
        self.chosen: dict[Path, type[Choice]] = {}
        self.origins: dict[Path, tuple[Setting, Any]] = {}
        """Path of a value in the tree -> the setting that it came from, and its kind."""
        self.tree = self._section(root, (), layers)
        for path, family in families(root):
            self.chosen.setdefault(path, family.registry[family.default])

    def _section(self, section: type[Section], path: Path, layers: Sequence[Layer]) -> dict[str, Any]:
        layers = [[one for setting in layer for one in self._spread(section, setting)] for layer in layers]
        tree: dict[str, Any] = {}
        if issubclass(section, Choice):
            section, layers = self._choose(section, path, layers)
            tree["name"] = section.name
        self._keep_known(section, layers)
        for key, field in section.model_fields.items():
            mine = [[one.below() for one in layer if one.path[0] == key] for layer in layers]
            if not any(mine):
                continue
            held, kind = section_of(kind_of(field)), kind_of(field)
            if held:
                tree[key] = self._section(held, (*path, key), mine)
            else:
                self._value(tree, kind, (*path, key), [one for layer in mine for one in layer])
        return tree

    def _spread(self, section: type[Section], setting: Setting) -> Iterator[Setting]:
        """A value for a whole section, as settings of its fields."""
        if setting.path:
            yield setting
            return
        value = self._spell(setting, section)
        if isinstance(value, dict):
            for key, item in value.items():
                line = getattr(key, "line", 0) if setting.source else 0
                yield Setting((str(key),), item, (*setting.full, str(key)), setting.source, line)
        elif isinstance(setting.value, Said) and setting.value.negated:
            self.unknown.append(setting)
        elif section.shorthand and not _is_null(value):
            yield replace(setting, path=(section.shorthand,))
        elif not section.shorthand and value is not None and not _is_null(value):
            self.problems.append(f"{setting} {_group(section, setting)}; got {value!s:.60}")

    def _choose(
        self, family: type[Choice], path: Path, layers: Sequence[Layer]
    ) -> tuple[type[Choice], Sequence[Layer]]:
        """The choice that the highest layer names, and the layers from the first that names it on."""
        choice = family.registry[family.default] if family.is_family() else family
        start = 0
        for at, layer in enumerate(layers):
            named = [one for one in layer if one.path == ("name",)]
            other = self._look_up(family, named[-1]) if named else choice
            if other is not choice:
                self._keep_known(choice, layers[start:at])
                choice, start = other, at
        self.chosen[path] = choice
        return choice, [[one for one in layer if one.path != ("name",)] for layer in layers[start:]]

    def _look_up(self, family: type[Choice], setting: Setting) -> type[Choice]:
        name = str(setting.value)
        if name not in family.registry:
            names = ", ".join(family.registry)
            self.problems.append(
                f"{setting}: no {family.kind} is named {name!r}{did_you_mean(name, family.registry)}; there are: {names}"
            )
            self.unclear.add(setting.name.removesuffix(".name"))
            name = nearest(name, family.registry) or family.default
        found: type[Choice] = family.registry[name]
        return found

    def _keep_known(self, section: type[Section], layers: Sequence[Layer]) -> None:
        def is_known(one: Setting) -> bool:
            return one.path[0] in section.model_fields or one.path == ("name",)

        for layer in layers:
            self.unknown += [one for one in layer if not is_known(one)]
            layer[:] = [one for one in layer if is_known(one)]

    def _value(self, tree: dict[str, Any], kind: Any, path: Path, settings: list[Setting]) -> None:
        for setting in settings:
            if not setting.path:
                value = self._spell(setting, kind)
                if value is not setting:
                    tree[path[-1]] = fit(value, kind)
                    self.origins = {at: one for at, one in self.origins.items() if at[: len(path)] != path}
                    self.origins[path] = setting, kind
            elif member_of(kind, dict) and all(setting.path):
                self._entry(tree, kind, path, setting)
            else:
                self.unknown.append(setting)

    def _entry(self, tree: dict[str, Any], kind: Any, path: Path, setting: Setting) -> None:
        """One entry of a mapping by its own flag: `--data.columns.text review`."""
        # A key may hold dots itself: it is a regular expression in --optim.lr_by_name.
        key = ".".join(setting.path)
        value = self._spell(setting, Any)
        if value is not setting:
            tree[path[-1]] = {**(tree.get(path[-1]) or {}), **fit({key: value}, kind)}
            self.origins[(*path, key)] = setting, (get_args(member_of(kind, dict)) or (Any,))[-1]

    def _spell(self, setting: Setting, kind: Any) -> Any:
        """The value that was given; the setting itself if there is none to be had (and then the problem is noted)."""
        said = setting.value
        if not isinstance(said, Said):
            return said
        try:
            held = section_of(kind)
            if held and not held.shorthand and not said.words and not said.negated:
                raise ConfigError(f"{setting} {_group(held, setting)}")
            if problem := _count_problem(said, kind):
                raise ConfigError(f"{setting} {problem}")
            if said.words:
                return spell(list(said.words), kind)
            return Plain("false" if said.negated else "true")
        except ConfigError as problem:
            if not (said.negated and section_of(kind)):
                self.problems += [text if text.startswith("--") else f"{setting}: {text}" for text in problem.problems]
            self.unclear.add(".".join(setting.full))
            return None if section_of(kind) else setting


def _group(section: type[Section], setting: Setting) -> str:
    some = ", ".join(setting.shown(".".join((*setting.full, name))) for name in list(section.model_fields)[:3])
    return f"is a group of settings: {some}, ..."


def _count_problem(said: Said, kind: Any) -> str:
    if said.negated:
        return "" if is_switch(kind) and not said.words else "is for switches alone, and takes no value"
    if not said.words:
        return "" if is_switch(kind) else f"needs a value: {describe(kind)}"
    if len(said.words) > 1 and not sequence_of(kind):
        return f"takes one value, got {len(said.words)}: {said} (quote a value that has spaces)"
    return ""


def _is_null(value: Any) -> bool:
    return value is None or (isinstance(value, Plain) and value.meaning() is None)


def layer(tree: dict[str, Any], source: str) -> Layer:
    """The settings that a file or a mapping holds."""
    return [
        Setting((str(key),), value, (str(key),), source, key.line if isinstance(key, Key) else 0)
        for key, value in tree.items()
    ]


def flag_layer(flags: Sequence[tuple[str, Said]]) -> Layer:
    """The settings that flags hold."""
    return [Setting(path, said, path) for name, said in flags if (path := tuple(name.split(".")))]
