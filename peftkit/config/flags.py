"""Every setting as a flag: its path, kind, default and help; and the flag that a misspelt word meant."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from peftkit.config.kinds import kind_of, section_of
from peftkit.config.section import Choice, Section

Path = tuple[str, ...]
Chosen = Mapping[Path, type[Choice]]

ELSEWHERE = {
    "adapter": "strategy",
    "batch_size": "batch.total",
    "finetuning_type": "strategy",
    "gradient_accumulation_steps": "batch.total",
    "learning_rate": "optim.lr",
    "logging_dir": "out",
    "lora_alpha": "strategy.alpha",
    "lora_dropout": "strategy.dropout",
    "lora_r": "strategy.rank",
    "lr_scheduler_type": "schedule",
    "max_grad_norm": "optim.clip",
    "max_seq_length": "data.max_length",
    "max_steps": "steps",
    "model_name_or_path": "model",
    "num_train_epochs": "epochs",
    "output_dir": "out",
    "per_device_train_batch_size": "batch.micro",
    "save_steps": "checkpoint.every",
    "train_file": "data.train",
    "warmup_ratio": "schedule.warmup",
    "warmup_steps": "schedule.warmup",
}
"""What other trainers call it."""


@dataclass(frozen=True)
class Flag:
    """One setting. `--model` and `--model.path` are two flags of one setting; the second has `short` set."""

    path: Path
    kind: Any
    default: Any
    owner: type[Section]
    """The section that describes it."""
    short: str = ""

    @property
    def name(self) -> str:
        return ".".join(self.path)

    @property
    def help(self) -> str:
        """The docstring under the field."""
        docs = self.owner.docs()
        return (
            docs.get(self.path[-1])
            or docs.get(self.owner.shorthand or "")
            or docs.get(self.short.rpartition(".")[2], "")
        )

    @property
    def word(self) -> str:
        return f"--{self.name}"


def flags(section: type[Section], chosen: Chosen, path: Path = ()) -> Iterator[Flag]:
    """All flags of the section, with those of the choices that `chosen` names (path -> class; else the default choice)."""
    for name, field in section.model_fields.items():
        here, kind = (*path, name), kind_of(field)
        held = section_of(kind)
        if held is None:
            short = ".".join(path) if name == section.shorthand else ""
            yield Flag(here, kind, _default(field), section, short)
        else:
            yield from _flags_below(section, held, here, chosen)


def _flags_below(section: type[Section], held: type[Section], here: Path, chosen: Chosen) -> Iterator[Flag]:
    if issubclass(held, Choice):
        choice = chosen.get(here) or (held.registry[held.default] if held.is_family() else held)
        yield Flag(here, held, held.default, section)
        yield Flag((*here, "name"), held, held.default, section, short=".".join(here))
        yield from flags(choice, chosen, here)
        return
    if held.shorthand:
        inner = held.model_fields[held.shorthand]
        yield Flag(here, kind_of(inner), _default(inner), held)
    yield from flags(held, chosen, here)


def _default(field: Any) -> Any:
    return None if field.is_required() else field.get_default(call_default_factory=True, validated_data={})


def families(section: type[Section], path: Path = ()) -> Iterator[tuple[Path, type[Choice]]]:
    """Where a choice stands, and of which family."""
    for name, field in section.model_fields.items():
        held = section_of(kind_of(field))
        if held and issubclass(held, Choice) and held.is_family():
            yield (*path, name), held
        elif held:
            yield from families(held, (*path, name))


def of_other_choices(section: type[Section]) -> dict[str, tuple[Path, list[str]]]:
    """Flags by name that some choice has -> where that choice stands, and the choices that have it."""
    found: dict[str, tuple[Path, list[str]]] = {}
    for path, family in families(section):
        for choice in family.registry:
            for flag in flags(family.registry[choice], {}, path):
                found.setdefault(flag.name, (path, []))[1].append(choice)
    return found


class Speller:
    """Says of an unknown name which one was meant."""

    def __init__(
        self, section: type[Section], chosen: Chosen, also: Collection[str] = (), command: str = "train"
    ) -> None:
        self.command = command
        known = list(flags(section, chosen))
        self.names = [flag.name for flag in known] + list(also)
        self.switches = [f"no-{flag.name}" for flag in known if flag.kind is bool]
        self.others = of_other_choices(section)
        self.elsewhere = [name for name in self.others if name not in self.names]
        self.chosen = {
            path: (chosen.get(path) or family.registry[family.default]).name for path, family in families(section)
        }
        self.kinds = {path: family.kind for path, family in families(section)}

    def explain(self, name: str, shown: Callable[[str], str]) -> str:
        """Why there is no setting `name`, and the way out; `shown` writes a name as its reader knows it (`--a.b`, or `a.b`)."""
        if name in self.others and name not in self.names:
            return f"belongs to {self.owners(name)}"
        if name in self.names:
            return f"must be nested in YAML: {': {'.join(name.split('.'))}: ...{'}' * name.count('.')}"
        meant = self.meant(name)
        if not meant:
            return f"is no setting (peftkit {self.command} --help lists them)"
        text = f"is no setting; the nearest is {' or '.join(shown(one) for one in meant)}"
        return text + (
            f", which belongs to {self.owners(meant[0])}" if meant[0] not in self.names + self.switches else ""
        )

    def owners(self, name: str) -> str:
        path, choices = self.others[name]
        return f"{self.kinds[path]} {', '.join(sorted(choices))}; {self.chosen[path]} was chosen"

    def meant(self, name: str) -> list[str]:
        """The names that `name` most likely stands for, best first; usually one."""
        mine, others = self.names + self.switches, self.elsewhere
        tries: list[Callable[[], Iterable[str]]] = [
            lambda: (known for known in mine if one_edit_apart(name, known)),
            lambda: (known for known in others if one_edit_apart(name, known)),
            lambda: [ELSEWHERE[name]] if ELSEWHERE.get(name) in (*mine, *others) else [],
            lambda: (known for known in mine if known.rpartition(".")[2] == name),
            lambda: (known for known in others if known.rpartition(".")[2] == name),
            lambda: get_close_matches(name, mine, n=1, cutoff=0.6),
            lambda: get_close_matches(name, others, n=1, cutoff=0.6),
            lambda: (known for known in mine if one_edit_apart(name, known.rpartition(".")[2])),
        ]
        return next((found[:3] for attempt in tries if (found := list(attempt()))), [])


def one_edit_apart(a: str, b: str) -> bool:
    """Whether one letter inserted, left out, replaced, or swapped with its neighbour makes `a` into `b`."""
    if abs(len(a) - len(b)) > 1:
        return False
    start = next((at for at, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    a, b = a[start:], b[start:]
    while a and b and a[-1] == b[-1]:
        a, b = a[:-1], b[:-1]
    return max(len(a), len(b)) <= 1 or (len(a) == len(b) == 2 and a == b[::-1])
