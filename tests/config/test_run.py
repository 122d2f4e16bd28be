"""Sections and choices: what every setting can rely on, for every choice that there is."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal, get_args, get_origin

import pytest
from pydantic import PositiveInt, ValidationError

from peftkit.config.amount import Amount
from peftkit.config.duration import Duration
from peftkit.config.flags import Flag, families, flags
from peftkit.config.kinds import alternatives
from peftkit.config.read import load, write
from peftkit.config.run import Run
from peftkit.config.section import Choice, Section, plural
from peftkit.strategies import Strategy

CHOICES = [(path, family.registry[name]) for path, family in families(Run) for name in family.registry]


class Colour(Choice, kind="test colour", default="red"):
    """A family for these tests."""


class Red(Colour, name="red"):
    """The default."""

    depth: PositiveInt = 3
    """How deep."""


class Blue(Colour, name="blue"):
    """The other."""

    pale: bool = False


class Holder(Section):
    """A section that holds a choice."""

    shorthand: ClassVar[str | None] = "size"
    colour: Colour = Red()
    size: int = 1


def test_a_choice_is_read_from_its_name_a_mapping_or_an_object():
    as_name, as_mapping, as_object = (
        Holder(colour=value)
        for value in ("blue", {"name": "blue"}, Blue())  # type: ignore[arg-type]
    )
    assert as_name == as_mapping == as_object
    assert as_name.colour == Blue()


def test_a_mapping_without_a_name_is_the_default_choice():
    assert Holder.model_validate({"colour": {"depth": 5}}).colour == Red(depth=5)


def test_a_choice_refuses_the_name_of_another():
    with pytest.raises(ValidationError, match="'blue' is not 'red'"):
        Red.model_validate({"name": "blue"})


def test_an_unknown_choice_suggests_the_nearest():
    with pytest.raises(ValidationError, match="did you mean 'blue'"):
        Holder.model_validate({"colour": "bleu"})


def test_two_choices_of_one_name_are_refused():
    with pytest.raises(ValueError, match="two test colour choices are named 'red'"):
        type("Crimson", (Colour,), {"__module__": __name__}, name="red")


def test_a_section_is_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        Red().depth = 4  # type: ignore[misc]


def test_an_unknown_field_is_refused():
    with pytest.raises(ValidationError, match="Extra inputs"):
        Holder.model_validate({"colour": {"name": "blue", "depth": 5}})


def test_a_bare_value_sets_the_shorthand():
    assert Holder.model_validate(7).size == 7


def test_a_written_choice_has_its_name_first():
    assert list(Red().model_dump().items()) == [("name", "red"), ("depth", 3)]


def test_docs_are_the_docstrings_below_the_fields():
    assert Red.docs() == {"depth": "How deep."}
    assert Red.model_json_schema()["properties"]["depth"]["description"] == "How deep."


def test_plurals():
    assert (plural("strategy"), plural("task")) == ("strategies", "tasks")


@pytest.mark.parametrize(("path", "choice"), CHOICES, ids=lambda one: getattr(one, "name", None) or ".".join(one))
def test_every_choice_says_what_it_is_and_what_its_fields_are(path, choice):
    assert choice.__doc__ and choice.__doc__.strip().endswith((".", ")"))
    assert set(choice.docs()) == set(choice.model_fields)


def test_every_setting_of_the_run_is_explained():
    assert [flag.name for flag in flags(Run, {}) if not flag.help] == []


def test_a_new_run_has_the_defaults_and_no_problem():
    run = Run()
    assert (run.strategy.name, run.batch.total, run.steps) == (Strategy.default, 16, None)
    assert list(run.problems()) == []


def test_every_clash_is_told():
    run = Run(steps=3, epochs=2, resume=True, deepspeed="zreo1", eval={"best": "accurcy"})  # type: ignore[arg-type]
    told = list(run.problems())
    assert len(told) == 4
    assert [word in text for word, text in zip(("--epochs 2", "--out", "zero1", "accuracy"), told, strict=True)] == [
        True
    ] * 4


def test_a_metric_that_is_not_computed_cannot_be_the_best():
    run = Run(task="chat", eval={"best": "f1"})  # type: ignore[arg-type]
    assert [text for text in run.problems() if "--eval.best f1 is not computed" in text]
    settings = {"task": "sequence_classification", "data": "x.csv", "eval": {"metrics": ["f1"], "best": "f1"}}
    assert not list(Run.model_validate(settings).problems())


@pytest.mark.parametrize(("path", "choice"), CHOICES, ids=lambda one: getattr(one, "name", None) or ".".join(one))
def test_run_to_yaml_to_run_is_the_identity(path, choice, tmp_path):
    """For every setting of every choice, at values other than its default."""
    tree: dict[str, Any] = {path[0]: choice.name}
    kept = 0
    for flag in flags(Run, {path: choice}):
        if flag.path[: len(path)] == path and len(flag.path) > len(path) and not flag.short:
            kept += _identity(tree, flag, tmp_path / "run.yaml")
    assert kept == len(choice.model_fields)


def test_run_to_yaml_to_run_is_the_identity_for_what_is_no_choice(tmp_path):
    plain = [flag for flag in flags(Run, {}) if flag.path[0] not in {path[0] for path, _ in families(Run)}]
    kept = [
        _identity({}, flag, tmp_path / "run.yaml") for flag in plain if not (len(flag.path) == 1 and _is_section(flag))
    ]
    assert all(kept)


def _is_section(flag: Flag) -> bool:
    field = Run.model_fields[flag.path[0]].annotation
    return isinstance(field, type) and issubclass(field, Section)


def _identity(tree: dict[str, Any], flag: Flag, file: Path) -> bool:
    """Whether a run with another value of this setting comes back from YAML as it was; False if no value is accepted."""
    for value in _others(flag.kind):
        section = tree.get(flag.path[0], {})
        inner = {"name": section} if isinstance(section, str) else dict(section)
        for name in reversed(flag.path[2:]):
            value = {name: value}
        changed = {flag.path[0]: value if len(flag.path) == 1 else {**inner, flag.path[1]: value}}
        try:
            run = Run.model_validate(changed)
        except ValidationError:
            continue
        file.write_text(write(run))
        assert load(file) == run, write(run)
        assert write(load(file)) == write(run)
        return True
    return False


def _others(kind: Any) -> list[Any]:
    """Values that a setting of this kind may take; awkward ones first."""
    found: list[Any] = []
    for member, _ in alternatives(kind):
        origin, inner = get_origin(member), get_args(member)
        if origin is Literal:
            found += reversed(inner)
        elif origin in (list, tuple):
            found += [
                [one] * (len(inner) if origin is tuple and Ellipsis not in inner else 1) for one in _others(inner[0])
            ]
        elif origin is dict:
            found += [{"on": one} for one in _others(inner[1])]
        elif isinstance(member, type) and issubclass(member, Choice):
            found += list(member.registry)
        elif isinstance(member, type) and issubclass(member, Section):
            found += [{"path": "a b/rows.jsonl"}, {}]
        else:
            found += {
                bool: [True, False],
                int: [7, 0],
                float: [1e-8, 0.1 + 0.2, 3.0],
                str: ["2e-5", "no", "0-1", "null", "a: 'b' #c", "é\n"],
                Path: [Path("no"), Path("a b/2e-5")],
                Duration: ["1-12:00:00", 0.1 + 0.2],
                Amount: ["1.5GiB", 7],
            }.get(member, [None])
    return found
