"""The picture of the losses is well-formed, small, and where its numbers say."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from peftkit.exporters.curves import HEIGHT, LEFT, MOST, RIGHT, TOP, WIDTH, curves_svg, thinned

SVG = "{http://www.w3.org/2000/svg}"


def test_points_stand_where_their_numbers_say() -> None:
    text = curves_svg({"training": [(0, 4.0), (5, 2.0), (10, 3.0)], "validation": [(10, 2.5)]})
    assert text
    drawn = ElementTree.fromstring(text)  # noqa: S314 - our own
    line = drawn.find(f"{SVG}polyline")
    assert line is not None
    points = [tuple(map(float, pair.split(","))) for pair in line.attrib["points"].split()]
    assert points[0] == (LEFT, TOP)
    assert points[1] == (pytest.approx((LEFT + WIDTH - RIGHT) / 2), HEIGHT - 36)
    assert points[2][0] == WIDTH - RIGHT
    words = [one.text for one in drawn.iter(f"{SVG}text")]
    assert {"4", "3", "2", "0", "step 10", "training loss", "validation loss"} <= set(words)


def test_without_two_points_there_is_no_curve() -> None:
    assert curves_svg({"training": [(1, 2.0)], "validation": []}) is None
    assert curves_svg({"strange": [(1, 2.0), (2, 3.0)]}) is None


def test_many_points_are_thinned_to_means() -> None:
    points = [(float(n), float(n % 10)) for n in range(30_000)]
    few = thinned(points)
    assert len(few) <= MOST and few[-1][0] == 29_999
    assert all(loss == pytest.approx(4.5) for _, loss in few)
    assert len(curves_svg({"training": points}) or "") < 8_000
    assert thinned(points[:7]) == points[:7]
