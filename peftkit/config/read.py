"""Settings, read once: defaults <- a resumed run's own <- YAML files <- flags. Every mistake is named, all at once."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from peftkit.config import yaml
from peftkit.config.flags import Speller, flags
from peftkit.config.kinds import alternatives, describe
from peftkit.config.run import Run
from peftkit.config.section import Section
from peftkit.config.settle import Layer, Setting, Settled, flag_layer, layer
from peftkit.config.trust import unasked
from peftkit.config.words import Said, split
from peftkit.errors import ConfigError
from peftkit.redact import redact_all, redact_setting
from peftkit.registry import did_you_mean

S = TypeVar("S", bound=Section)
MAY_DIFFER = (
    "batch.micro",
    "batch.tokens",
    "batch.sequence_parallel",
    "deepspeed",
    "speed",
    "eval",
    "checkpoint",
    "guard",
    "slurm",
    "verbose",
    "out",
    "resume",
    "steps",
    "epochs",
    "data.cache",
    "strategy.cache_budget",
)
"""What a resumed run may be told anew: nothing of it changes how the steps are computed."""
COMMAND_WORDS = ("config", "dry-run", "help")


def read(words: Sequence[str] = (), base: dict[str, Any] | None = None) -> Run:
    """The run that `words` ask for, above the settings in `base`.

    Raises ConfigError with every problem: unknown settings, wrong values, clashes.

    >>> read(["--strategy", "lora", "--strategy.rank", "8", "--optim.lr=2e-4"]).strategy.rank
    8
    """
    run, problems = _read(words, base)
    if problems or run is None:
        raise ConfigError(problems)
    return run


def chosen(words: Sequence[str]) -> Settled:
    """What the words choose, whatever else is wrong with them: for `--help`."""
    try:
        layers, _ = _layers(words, None)
    except ConfigError:
        layers = [flag_layer(split(words).flags)]
    return Settled(Run, layers)


def write(run: Run) -> str:
    """The run as YAML, all settings written out; `read` of it gives the same run, without secrets (`https://host/?token=(hidden)`)."""
    return yaml.dump(redact_all(run.model_dump(mode="json")))


def load(file: Path) -> Run:
    """The run that `write` wrote into `file`. Clashes are not looked for: it has been run, maybe on another machine."""
    tree, problems = yaml.load(file)
    settled = Settled(Run, [layer(tree, str(file))])
    problems += settled.problems + list(_unknown(settled))
    run, wrong = _build(settled, Run)
    if run is None or problems or wrong:
        raise ConfigError(problems + wrong)
    return run


def read_section(section: type[S], flags: Sequence[tuple[str, Said]], command: str) -> S:
    """A section by itself, as flags of a `command` that is no training have it; every mistake is named, as `read` does."""
    settled = Settled(section, [flag_layer(flags)])
    problems = settled.problems + list(_unknown(settled, section, command))
    found, wrong = _build(settled, section)
    if problems or wrong or found is None:
        raise ConfigError(list(dict.fromkeys(problems + wrong)))
    return found


def decisive(run: Run) -> dict[str, Any]:
    """The settings that decide what is learnt, as YAML has them: those that a resumed run may not be told anew. No secrets."""
    tree: dict[str, Any] = redact_all(run.model_dump(mode="json"))
    for name in MAY_DIFFER:
        _leave_out(tree, tuple(name.split(".")))
    return tree


def _read(words: Sequence[str], base: dict[str, Any] | None) -> tuple[Run | None, list[str]]:
    layers, problems = _layers(words, base)
    own = Settled(Run, layers).tree
    begun = _begun(own)
    if begun:
        layers.insert(1, layer(begun[1], str(begun[0])))
        problems += begun[2]
    settled = Settled(Run, _one_end(layers))
    problems += settled.problems + list(_unknown(settled))
    run, wrong = _build(settled, Run)
    problems += wrong
    if run:
        clashes = [*run.problems(), *(_changed(run, begun[0]) if begun and not problems else ())]
        problems += _unsaid(run, own, begun[0]) if begun else ()
        problems += [clash for clash in clashes if not _hangs_on(clash, settled.unclear)]
    return run, list(dict.fromkeys(problems))


def _layers(words: Sequence[str], base: dict[str, Any] | None) -> tuple[list[Layer], list[str]]:
    spoken = split(words)
    layers, problems = [layer(base or {}, "base")], spoken.problems
    layers += [layer(tree, name) for name, tree in _files(spoken.configs, problems)]
    return [*layers, flag_layer(spoken.flags)], problems


def _files(names: Sequence[str], problems: list[str]) -> list[tuple[str, dict[str, Any]]]:
    """The files' settings. One that cannot be read at all is an error by itself: what it chooses would be missing below."""
    found, unreadable = [], []
    for name in names:
        try:
            tree, wrong = yaml.load(_existing(Path(name)))
            found.append((name, tree))
            problems += wrong
        except ConfigError as problem:
            unreadable += problem.problems
    if unreadable:
        raise ConfigError(problems + unreadable)
    return found


def _existing(path: Path) -> Path:
    if path.is_file():
        return path
    folder = path.parent
    beside = [str(folder / one.name) for one in folder.glob("*")] if folder.is_dir() else []
    yamls = [one for one in beside if one.endswith((".yaml", ".yml"))]
    what = "is a folder" if path.is_dir() else "is not there"
    near = did_you_mean(str(path), yamls) or did_you_mean(str(path), beside)
    there = f"; {folder} has: {', '.join(sorted(yamls)[:5])}" if yamls and not near else ""
    raise ConfigError(f"--config {path} {what}{near}{there}")


def _one_end(layers: list[Layer]) -> list[Layer]:
    """`--epochs` in a higher layer takes the place of `steps` in a lower one, and the other way round."""
    kept: list[Layer] = []
    for this in layers:
        named = {one.path[0] for one in this if not _is_null(one.value)}
        for name, other in (("steps", "epochs"), ("epochs", "steps")):
            if name in named and other not in named:
                kept = [[one for one in lower if one.path[0] != other] for lower in kept]
        kept.append(this)
    return kept


def _is_null(value: Any) -> bool:
    return value is None or str(value) in ("null", "~", "")


def _begun(tree: dict[str, Any]) -> tuple[Path, dict[str, Any], list[str]] | None:
    """The settings of the run that is to be resumed, if it has begun, and what is wrong with them."""
    out = tree.get("out")
    if not _is_true(tree.get("resume")) or not isinstance(out, (str, Path)):
        return None
    file = Path(out) / "config.yaml"
    return (file, *yaml.load(file)) if file.is_file() else None


def unsaid(run: Run, words: Sequence[str], file: Path) -> list[str]:
    """What is wrong with taking code from `file`, which is a folder's own, where the words that were typed do not ask for it."""
    return list(_unsaid(run, Settled(Run, _layers(words, None)[0]).tree, file))


def _unsaid(run: Run, own: dict[str, Any], file: Path) -> Iterator[str]:
    for name, value in unasked(run).items():
        section, _, field = name.partition(".")
        if field not in own.get(section, {}):
            yield (
                f"{file} asks to run code (--{name} {value}), which you have not asked for yourself; if you trust what it"
                f" runs, give --{name} as well, or name the whole file: --config {file}"
            )


def _is_true(value: Any) -> bool:
    # As pydantic will read it: `yes` and `on` as well.
    try:
        return TypeAdapter(bool).validate_python(value)
    except ValidationError:
        return False


def _changed(run: Run, file: Path) -> Iterator[str]:
    """Settings that would change what is learnt in the middle of a run."""
    for name, old, new in differences(load(file), run, ""):
        if not any(name == may or name.startswith(f"{may}.") for may in MAY_DIFFER):
            yield (
                f"--{name} {new} differs from {old}, with which {file.parent} began;"
                f" leave it out to go on, or begin another run with another --out"
            )


def differences(old: Any, new: Any, path: str = "") -> Iterator[tuple[str, str, str]]:
    """Settings in which two runs differ: name, old value, new value."""
    if isinstance(old, Section) and type(old) is type(new):
        for name in type(old).model_fields:
            yield from differences(getattr(old, name), getattr(new, name), f"{path}.{name}" if path else name)
    elif old != new and redact_setting(str(old)) != redact_setting(str(new)):  # a secret is not in the file
        yield path, redact_setting(_show(old)), redact_setting(_show(new))


def _show(value: Any) -> str:
    return getattr(value, "name", None) or ("null" if value is None else str(value))


def _unknown(settled: Settled, root: type[Section] = Run, command: str = "train") -> Iterator[str]:
    if not settled.unknown:
        return
    speller = Speller(root, settled.chosen, COMMAND_WORDS, command)
    for setting in settled.unknown:
        settled.unclear.update(name.removeprefix("no-") for name in speller.meant(setting.name))
        yield f"{setting} {speller.explain(setting.name, setting.shown)}"


def _build(settled: Settled, root: type[S]) -> tuple[S | None, list[str]]:
    """The section, and what is wrong; settings with a wrong value are left out of it so that clashes can still be told."""
    problems: list[str] = []
    for _ in range(3):
        try:
            return root.model_validate(settled.tree), problems
        except ValidationError as wrong:
            found = {_origin(settled, root, error): error for error in _most_telling_last(wrong)}
            problems += [_explain(settled, path, error) for path, error in found.items()]
            for path in found:
                _leave_out(settled.tree, path)
                settled.unclear.add(".".join(path))
    return None, problems


def _most_telling_last(wrong: ValidationError) -> list[Any]:
    # A union gives an error a member; one with a sentence of its own says most.
    return sorted(wrong.errors(include_url=False), key=lambda error: error["type"] in ("value_error", "unknown_choice"))


def _origin(settled: Settled, root: type[Section], error: Any) -> tuple[str, ...]:
    """The path of the setting that the error is about."""
    path = tuple(str(part) for part in error["loc"])
    for end in range(len(path), 0, -1):
        if path[:end] in settled.origins:
            return path[:end]
    known = {flag.path for flag in flags(root, settled.chosen)}
    return next((path[:end] for end in range(len(path), 0, -1) if path[:end] in known), path[:1])


def _explain(settled: Settled, path: tuple[str, ...], error: Any) -> str:
    setting, kind = settled.origins.get(path, (Setting(path, None, path), Any))
    told = error["msg"].removeprefix("Value error, ")
    if error["type"] == "missing" and path not in settled.origins:
        return f"{setting} is needed and was not given"
    if error["type"] in ("value_error", "assertion_error", "unknown_choice", "wrong_name"):
        return f"{setting}: {told}"
    if error["type"] == "extra_forbidden":
        return f"{setting}: {error['loc'][-1]} is no setting of it; got {_got(setting.value)}"
    if kind is Any:
        return f"{setting}: {told}; got {_got(error['input'])}"
    values = [value for member, _ in alternatives(kind) for value in getattr(member, "__args__", ())]
    near = did_you_mean(str(setting.value), [value for value in values if isinstance(value, str)])
    return f"{setting} takes {describe(kind)}; got {_got(setting.value)}{near}"


def _got(value: Any) -> str:
    items = [str(item) for item in value] if isinstance(value, list) else None
    text = f"[{', '.join(items)}]" if items is not None else str(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _leave_out(tree: dict[str, Any], path: tuple[str, ...]) -> None:
    for part in path[:-1]:
        inner = tree.get(part)
        if not isinstance(inner, dict):
            break
        tree = inner
    tree.pop(path[-1], None)


def _hangs_on(clash: str, unclear: set[str]) -> bool:
    """Whether the clash speaks of a setting whose value is not known (a default stands in its place)."""
    return any(re.search(rf"--{re.escape(name)}(?![\w.])", clash) for name in unclear)
