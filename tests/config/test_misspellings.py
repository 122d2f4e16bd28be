"""Every one-letter misspelling of every setting of every choice is refused, and the right one is suggested."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from peftkit.config.flags import Speller, families, flags, one_edit_apart
from peftkit.config.read import read
from peftkit.config.run import Run
from peftkit.errors import ConfigError

CHOICES = [(path, family.registry[name]) for path, family in families(Run) for name in family.registry]


def misspellings(name: str) -> Iterator[str]:
    """Each letter left out, doubled, swapped with the next, replaced, and one put in before it; one put at the end."""
    for at, letter in enumerate(name):
        other = "x" if letter != "x" else "y"
        yield name[:at] + name[at + 1 :]
        yield name[:at] + letter + name[at:]
        yield name[:at] + other + name[at + 1 :]
        yield name[:at] + other + name[at:]
        yield name[:at] + name[at + 1 : at + 2] + letter + name[at + 2 :]
    yield name + "s"
    yield name + "."


def wrong_words(names: list[str], known: set[str]) -> dict[str, list[str]]:
    """A misspelt name -> the names that it may have been."""
    wrong: dict[str, list[str]] = {}
    for name in names:
        for word in set(misspellings(name)) - known:
            wrong.setdefault(word, []).append(name)
    return wrong


@pytest.mark.parametrize(
    ("path", "choice"),
    [(("run",), None), *CHOICES],
    ids=lambda one: getattr(one, "name", None) or ".".join(one or ["all"]),
)
def test_every_misspelling_is_refused_and_corrected(path, choice):
    chosen = {path: choice} if choice else {}
    all_names = [flag.name for flag in flags(Run, chosen)]
    own = [name for name in all_names if choice is None or name.startswith(f"{path[0]}.")]
    switches = [f"no-{flag.name}" for flag in flags(Run, chosen) if flag.kind is bool and flag.name in own]
    speller = Speller(Run, chosen)
    wrong = wrong_words(own + switches, {*all_names, *speller.switches})
    told = refusals(
        [f"--{word}=1" for word in wrong], ["--strategy", "lora"] if choice is None else [f"--{path[0]}", choice.name]
    )
    assert len(wrong) > 20
    for word, meant in wrong.items():
        shown = word if word.startswith("-") else f"--{word}"
        text = told.get(shown, "")
        assert any(f"--{name}" in text.replace(",", " ").split() for name in meant), (word, meant, text)


def refusals(words: list[str], choosing: list[str]) -> dict[str, str]:
    """A refused word -> what was said of it, from one reading of all words."""
    with pytest.raises(ConfigError) as refused:
        read([*choosing, *words])
    return {text.split()[0]: text for text in refused.value.problems}


@pytest.mark.parametrize("name", sorted({flag.name for flag in flags(Run, {})}))
def test_no_abbreviation_is_taken(name):
    known = {flag.name for flag in flags(Run, {})}
    for end in range(1, len(name)):
        if name[:end] not in known:
            with pytest.raises(ConfigError):
                read([f"--{name[:end]}", "1"])


@pytest.mark.parametrize(
    ("a", "b", "near"),
    [
        ("rank", "rank", True),
        ("rnak", "rank", True),
        ("rak", "rank", True),
        ("rankk", "rank", True),
        ("renk", "rank", True),
        ("arkn", "rank", False),
        ("rrankk", "rank", False),
        ("", "ab", False),
        ("", "a", True),
    ],
)
def test_one_edit_apart(a, b, near):
    assert one_edit_apart(a, b) is near
    assert one_edit_apart(b, a) is near
