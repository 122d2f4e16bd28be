"""Losses over steps as a small SVG file beside the card, which shows it as a picture.

A file of its own: the hub takes inline SVG out of a card, and people who draw with Mermaid there put a rendered SVG beside it
(nvidia/omni-dreams-models, discussion 2); a picture in the repository every viewer of Markdown shows. All that stands in it is
numbers and fixed words.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

CURVES = "curves.svg"
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640, 260, 56, 16, 28, 36
COLOURS = {"training": "#4477cc", "validation": "#cc6633", "anchor": "#339966"}
"""Legible on white and on black."""
MOST = 300
"""Points of a curve; of more, means of neighbours are drawn."""

Points = Sequence[tuple[float, float]]


def curves_svg(curves: Mapping[str, Points]) -> str | None:
    """The picture; None if no curve has two points."""
    drawn = {name: thinned(points) for name, points in curves.items() if name in COLOURS and points}
    if all(len(points) < 2 for points in drawn.values()):
        return None
    every = [point for points in drawn.values() for point in points]
    steps, losses = ([point[axis] for point in every] for axis in (0, 1))
    first, last, low, high = min(steps), max(steps), min(losses), max(losses)

    def place(point: tuple[float, float]) -> tuple[float, float]:
        across = (point[0] - first) / (last - first or 1)
        up = (point[1] - low) / (high - low or 1)
        return round(LEFT + across * (WIDTH - LEFT - RIGHT), 1), round(
            HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM), 1
        )

    bottom, right, middle = HEIGHT - BOTTOM, WIDTH - RIGHT, (TOP + HEIGHT - BOTTOM) / 2
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}"',
        '  font-family="sans-serif" font-size="12" fill="#808080">',
        f'<path d="M{LEFT} {TOP}V{bottom}H{right}" fill="none" stroke="#808080"/>',
        *(
            f'<text x="{LEFT - 6}" y="{y + 4}" text-anchor="end">{value:.4g}</text>'
            for value, y in ((high, TOP), ((high + low) / 2, middle), (low, bottom))
        ),
        f'<text x="{LEFT}" y="{HEIGHT - 14}">{first:.0f}</text>',
        f'<text x="{right}" y="{HEIGHT - 14}" text-anchor="end">step {last:.0f}</text>',
    ]
    for number, (name, points) in enumerate(drawn.items()):
        places = [place(point) for point in points]
        line = " ".join(f"{x},{y}" for x, y in places)
        colour = COLOURS[name]
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        if name != "training":
            parts += [f'<circle cx="{x}" cy="{y}" r="2.5" fill="{colour}"/>' for x, y in places]
        parts.append(f'<text x="{LEFT + 8 + 130 * number}" y="16" fill="{colour}">{name} loss</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def thinned(points: Points) -> list[tuple[float, float]]:
    """At most MOST points: of neighbours the last step and the mean loss."""
    size = math.ceil(len(points) / MOST)
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [(group[-1][0], math.fsum(loss for _, loss in group) / len(group)) for group in groups]
