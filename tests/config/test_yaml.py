"""YAML 1.2 scalars, both ways."""

from __future__ import annotations

import math

import pytest
import yaml as pyyaml

from peftkit.config.kinds import fit
from peftkit.config.yaml import Plain, dump, load, parse
from peftkit.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2e-5", 2e-5),
        ("1E3", 1000.0),
        (".5", 0.5),
        ("12", 12),
        ("-3", -3),
        ("0x10", 16),
        ("0o17", 15),
        ("017", 17),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("-.inf", -math.inf),
        ("no", "no"),
        ("on", "on"),
        ("1_000", "1_000"),
        ("12:30", "12:30"),
        ("2024-01-01", "2024-01-01"),
        ("e5", "e5"),
    ],
)
def test_a_word_without_quotes_means(text, value):
    assert Plain(text).meaning() == value
    assert type(Plain(text).meaning()) is type(value)


@pytest.mark.parametrize("value", ["2e-5", "no", "null", "", "1.0", "a: b", "0x1", "x\ny", "- a", "'", "#"])
def test_text_stays_text(value):
    assert fit(parse(dump({"a": value}), "here"), dict[str, str | float | bool | None]) == {"a": value}
    assert pyyaml.safe_load(dump({"a": value})) == {"a": value}


@pytest.mark.parametrize("value", [1e-8, 2e-5, 0.1 + 0.2, 1e300, 3.0, math.inf, 7, True, None])
def test_numbers_stay_numbers(value):
    assert fit(parse(dump({"a": value}), "here"), dict[str, float | None]) == {"a": value}
    assert pyyaml.safe_load(dump({"a": value})) == {"a": value}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a: [1", "line 1, column 6: broken YAML"),
        ("a: 1\n\tb: 2", "line 2, column 1: broken YAML"),
        ("a: 1\n---\nb: 2", "line 2, column 1: broken YAML"),
        ("a: *b", "broken YAML"),
        ("- a\n- b", "is no mapping"),
        ("hello", "is no mapping"),
        ("a: \x00", "broken YAML"),
    ],
)
def test_broken_files_say_where(text, told, tmp_path):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ConfigError, match=told):
        load(tmp_path / "a.yaml")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a: &b [*b]", "an alias that contains itself"),
        ("a: !!python/name:os.system", "python/name:os.system is not read here"),
        ("a: !mine 3", "the tag !mine is not read here"),
        ("? [a]\n: 3", "a key is a word"),
    ],
)
def test_what_no_setting_can_be_is_refused(text, told, tmp_path):
    (tmp_path / "a.yaml").write_text(text)
    assert told in load(tmp_path / "a.yaml")[1][0]


def test_bytes_that_are_no_text_are_refused(tmp_path):
    (tmp_path / "a.yaml").write_bytes(b"a: \xff\xfe")
    with pytest.raises(ConfigError, match="cannot be read"):
        load(tmp_path / "a.yaml")
