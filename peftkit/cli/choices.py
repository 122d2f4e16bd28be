"""`peftkit choices`: every registry, a line for each choice."""

from __future__ import annotations

from typing import TYPE_CHECKING

from peftkit.cli.help import first_sentence, two_columns
from peftkit.cli.screen import stdout
from peftkit.cli.words import Parser
from peftkit.errors import ConfigError
from peftkit.registry import did_you_mean

if TYPE_CHECKING:
    from peftkit.config.section import Choice


def run(words: list[str]) -> int:
    """All families, or those that are named: `peftkit choices strategy task`."""
    known = families()
    parser = Parser("choices", "List what can be chosen.")
    parser.add_argument("family", nargs="*", help=f"only these: {', '.join(known)}")
    try:
        asked = parser.parse_args(words).family or list(known)
    except SystemExit as after_help:
        return int(after_help.code or 0)
    wrong = [
        f"there is no family {name!r}{did_you_mean(name, known)}: {', '.join(known)}"
        for name in asked
        if name not in known
    ]
    if wrong:
        raise ConfigError(wrong)
    console = stdout()
    for kind in asked:
        family = known[kind]
        rows = [(name, first_sentence(family.registry[name].__doc__)) for name in family.registry]
        rows = [(f"{name} (default)" if name == family.default else name, text) for name, text in rows]
        two_columns(console, kind, first_sentence(family.__doc__), rows)
    return 0


def families() -> dict[str, type[Choice]]:
    """Every family of peftkit's choices, by its kind."""
    import peftkit.config.run
    import peftkit.exporters  # noqa: F401
    from peftkit.config.section import Choice

    ours = (family for family in Choice.__subclasses__() if family.__module__.startswith("peftkit."))
    return {family.kind: family for family in ours if family.is_family()}
