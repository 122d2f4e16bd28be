"""The registry of checks: a check is a function from a case to findings, in a file of its own in `checks/`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace

from peftkit.data.doctor.finding import SEVERITIES, Finding, RemedyName
from peftkit.data.doctor.sheet import Case
from peftkit.errors import ConfigError
from peftkit.registry import Registry, did_you_mean

Find = Callable[[Case], Iterator[Finding]]


@dataclass(frozen=True)
class Check:
    """A check's name and function, the remedies that it may propose, and whether it needs the model's tokenizer."""

    name: str
    find: Find
    remedies: tuple[RemedyName, ...] = ()
    model: bool = False


CHECKS = Registry[Check]("check", group="peftkit.checks")


def check(name: str, *remedies: RemedyName, model: bool = False) -> Callable[[Find], Find]:
    """Register the function below as a check."""

    def register(find: Find) -> Find:
        CHECKS.add(name, Check(name, find, remedies, model))
        return find

    return register


def chosen(only: Collection[str] = (), skip: Collection[str] = ()) -> list[Check]:
    """The checks named by `only` (none named: all) without those of `skip`; ConfigError for a name that there is not."""
    for flag, names in (("--only", only), ("--skip", skip)):
        for name in names:
            if name not in CHECKS:
                near = did_you_mean(name, CHECKS)
                raise ConfigError(f"{flag} {name}: no check has that name{near}; there are: {', '.join(CHECKS)}")
    return [CHECKS[name] for name in CHECKS if (not only or name in only) and name not in skip]


def examine(case: Case, checks: Collection[Check]) -> list[Finding]:
    """All findings, the gravest first. Checks that need a tokenizer are left out where there is none."""
    usable = [one for one in checks if case.reading or not one.model]
    findings = [replace(finding, check=one.name) for one in usable for finding in one.find(case)]
    return sorted((one for one in findings if one.numbers), key=_order)


def _order(finding: Finding) -> tuple[int, str, str]:
    return SEVERITIES.index(finding.severity), finding.sheet.split, finding.check
