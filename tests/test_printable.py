"""Nothing that steers a terminal gets to it."""

from __future__ import annotations

from peftkit.printable import printable


def test_control_characters_are_spelt_out() -> None:
    assert printable("a\x1b[2Jb\x07") == "a\\x1b[2Jb\\x07"
    assert printable("\u202eevil") == "\\u202eevil"
    assert printable("two\nlines\tand a tab: é 漢") == "two\nlines\tand a tab: é 漢"
