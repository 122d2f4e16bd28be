"""The plan of a merge by PEFT's layers: each tensor of the merged model, from the base's files or from what changes it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from peftkit.errors import ModelError
from peftkit.merging.adapter import Adapter
from peftkit.merging.base import Base
from peftkit.merging.by_peft import Changes, Combine, load, mix, stand
from peftkit.merging.direct import Beyond
from peftkit.merging.hollow import hollow, names_of, vocabulary
from peftkit.merging.nf4 import Quantised
from peftkit.merging.plan import Entry, Plan, format_of, kept, rounded, settings
from peftkit.merging.tensors import Stored
from peftkit.models.inspect import embedding_ends


def plan(
    base: Base, adapters: Sequence[Adapter], dtype: torch.dtype | None, combine: Combine | None = None,
    quantised: Quantised | None = None, labels: Mapping[int, str] | None = None, trust: bool = False,
) -> Plan:  # fmt: skip
    """Raises Beyond if what the adapter changes is not stored as it is, ModelError if adapter and base do not fit."""
    model = hollow(base, adapters[0], labels, trust)
    assembly = Assembly(base, model, dtype, quantised)
    adapted = stand(model, adapters)
    whole = load(adapted, adapters, assembly.known)
    plain = {name for name, one in whole.items() if assembly.has(name, one)}
    assembly.own = {name: one for name, one in whole.items() if name not in plain}
    if combine is not None:
        mix(adapted, adapters, combine, plain)
    return assembly.plan(adapted, adapters, labels)


class Assembly:
    """The base's values as the adapter found them, and what becomes of them."""

    def __init__(self, base: Base, model: Any, dtype: torch.dtype | None, quantised: Quantised | None) -> None:
        self.base, self.dtype, self.quantised = base, dtype, quantised
        self.kind = type(model).__name__
        self.names = names_of(base, model)
        self.known = list(model.state_dict())
        self.groups = groups(model)
        self.ends = {name for end in embedding_ends(model) for name in named(model, end)}
        self.optional = list(model._keys_to_ignore_on_load_missing or ())
        self.four_bit = quantised.layers(model) if quantised else {}
        self.own: dict[str, Stored] = {}

    def plan(self, adapted: Any, adapters: Sequence[Adapter], labels: Mapping[int, str] | None) -> Plan:
        self.changes = Changes(adapted, self.read)
        self.shapes = self.changes.shapes()
        for name in [*self.shapes, *self.own]:
            self.stored(name)  # Beyond, or a fault, now and not halfway
        parted = self.parted()
        entries, done = self.of_files(), set(self.names.file)
        for name in self.known:
            alone = name in parted or not any(twin in done for twin in self.group(name) if twin != name)
            if name not in done and alone and (name in self.shapes or name in self.own or name in parted):
                entries.append(self.entry(name, name))
                done.add(name)
        self.check_whole(done)
        rows = vocabulary(self.base, adapters[0])
        made = settings(self.base.config, self.dtype, rows, untied=bool(parted))
        made["architectures"] = [self.kind]
        if labels:
            made["id2label"] = {str(number): label for number, label in labels.items()}
            made["label2id"] = {label: number for number, label in labels.items()}
        elif rows_of_head := self.rows_of_head(adapted):
            made["id2label"] = {str(number): f"LABEL_{number}" for number in range(rows_of_head)}
            made["label2id"] = {f"LABEL_{number}": number for number in range(rows_of_head)}
        return Plan(entries, made, self.notes(parted))

    def of_files(self) -> list[Entry]:
        """What lies in the base's files and in the model."""
        by_file = {file: name for name, file in self.names.file.items()}
        entries = []
        for file, stored in self.base.tensors.items():
            if file in self.names.converted:
                entries.append(kept(file, stored, self.dtype))
            elif file in by_file:
                entries.append(self.entry(by_file[file], self.names.output[file]))
        return entries

    def entry(self, name: str, written: str) -> Entry:
        stored = self.stored(name)
        form = format_of(stored.dtype if stored else self.usual(), self.dtype)
        if name in self.shapes:
            target, shape = self.shapes[name]
            return Entry(written, form, shape, stored, lambda: rounded(self.changes.make(target, name), form, name))
        if stored is None:
            raise ModelError(f"neither --base nor --adapter has {name}")
        if stored in self.own.values() or name in self.four_bit:
            return Entry(written, form, stored.shape, stored, partial(self.rounded, name, form))
        return kept(written, stored, self.dtype)

    def rounded(self, name: str, form: torch.dtype) -> Tensor:
        return rounded(self.read(name), form, name)

    def read(self, name: str) -> Tensor:
        """A weight as the adapter found it, in fp32 (fp64, if it is that)."""
        stored = self.stored(name)
        if stored is None:
            raise ModelError(f"neither --base nor --adapter has {name}")
        value = stored.read()
        if self.quantised is not None and name in self.four_bit and stored not in self.own.values():
            value = self.quantised.as_trained(value, self.four_bit[name])
        return value.float() if value.is_floating_point() and value.dtype != torch.float64 else value

    def has(self, name: str, other: Stored) -> bool:
        """Whether the base has the very same weight: PEFT saves embeddings that it only stands on."""
        known = self.stored(name)
        return known is not None and known.shape == other.shape and torch.equal(self.read(name), other.read().float())

    def stored(self, name: str) -> Stored | None:
        """Where a weight of the base is, under its own name or that of one it is tied to; None: nowhere."""
        every = [name, *self.group(name)]
        found = next((self.own[one] for one in every if one in self.own), None)
        if found is None:
            found = next((self.base.tensors[self.names.file[one]] for one in every if one in self.names.file), None)
        if found is None and name in self.names.converted.values():
            raise Beyond(f"transformers puts {name} together from several tensors of the files")
        return found

    def group(self, name: str) -> list[str]:
        """The names of what is tied to it, and its own."""
        return next((group for group in self.groups if name in group), [name])

    def parted(self) -> set[str]:
        """Names that were tied and now differ. ModelError if a configuration cannot say so."""
        found: set[str] = set()
        for group in self.groups:
            touched = [name for name in group if name in self.shapes or name in self.own]
            if not touched or self.all_equal(group):
                continue
            if not self.ends.issuperset(group):
                raise ModelError(
                    f"{touched[0]} is tied to {', '.join(name for name in group if name != touched[0])}, and the adapter"
                    " changes it alone: no model of this kind can be stored so"
                )
            found |= set(group)
        return found

    def all_equal(self, group: Sequence[str]) -> bool:
        first = self.final(group[0])
        return all(torch.equal(first, self.final(name)) for name in group[1:])

    def final(self, name: str) -> Tensor:
        if name in self.shapes:
            return self.changes.make(self.shapes[name][0], name)
        return self.own[name].read().float() if name in self.own else self.read(name)

    def usual(self) -> torch.dtype:
        """The format of most of the base's floats."""
        found = Counter(one.dtype for one in self.base.tensors.values() if one.dtype.is_floating_point)
        return found.most_common(1)[0][0]

    def check_whole(self, done: set[str]) -> None:
        """ModelError if the merged model would have a weight that nobody gave it."""
        made = done | set(self.names.converted.values())
        lacking = [
            name
            for name in self.known
            if not made.intersection([name, *self.group(name)])
            and not any(re.search(one, name) for one in self.optional)
        ]
        if lacking:
            raise ModelError(
                f"{len(lacking)} weights of {self.kind} are neither in --base nor in --adapter, such as {lacking[0]}; is"
                " that the adapter's base?"
            )

    def rows_of_head(self, adapted: Any) -> int | None:
        config = adapted.get_base_model().config
        differs = config.num_labels != len(self.base.config.get("id2label") or (0, 1))
        return config.num_labels if differs else None

    def notes(self, parted: set[str]) -> list[str]:
        notes = [f"{' and '.join(sorted(parted))} were tied and now differ: both are written"] if parted else []
        unused = self.names.unused
        if unused:
            notes.append(f"left out, as {self.kind} does not use them: {len(unused)} tensors, such as {unused[0]}")
        if self.quantised:
            notes.append(f"{len(self.four_bit)} weights as they were in 4 bits ({self.quantised.quant_type})")
        return notes


def groups(model: nn.Module) -> list[list[str]]:
    """Names of the parameters that are tied together."""
    found: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        found.setdefault(id(parameter), []).append(name)
    return [names for names in found.values() if len(names) > 1]


def named(model: nn.Module, module: nn.Module) -> list[str]:
    """The full names of a module's own parameters."""
    where = next(name for name, one in model.named_modules() if one is module)
    return [f"{where}.{inner}" for inner, _ in module.named_parameters()]
