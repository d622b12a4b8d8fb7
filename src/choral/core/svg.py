"""What figures are made of: a white page, lines, text, and axes with ticks at round numbers.

Every function returns SVG text. Words are escaped here, so that names from data or configs can stand in a figure.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape

INK, QUIET, GRID, CURVE, MARK = "#1f2933", "#66727f", "#e4e8ec", "#1565a8", "#c2410c"


def page(width: int, height: int, parts: Iterable[str]) -> str:
    """Return a whole figure of so many pixels, on white."""
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
            'font-family="Helvetica, Arial, sans-serif" font-size="13">',
            f'<rect width="{width}" height="{height}" fill="white"/>',
            *parts,
            "</svg>\n",
        ]
    )


def line(x1: float, y1: float, x2: float, y2: float, colour: str, width: float = 1.0, dash: str = "") -> str:
    """Return a line; `dash` as SVG has it, such as "5 4"."""
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" stroke-width="{width}"{dashes}/>'


def polyline(
    points: Sequence[tuple[float, float]], colour: str, width: float = 2.5, dash: str = "", clip: str = ""
) -> str:
    """Return a line through points (x, y); `clip` names the `clipPath` that cuts it off."""
    places = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    clipped = f'clip-path="url(#{clip})" ' if clip else ""
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    return (
        f'<polyline {clipped}points="{places}" fill="none" stroke="{colour}" stroke-width="{width}" '
        f'stroke-linejoin="round"{dashes}/>'
    )


def text(
    x: float, y: float, words: str, colour: str = INK, *, size: int = 13, weight: str = "normal", anchor: str = "start"
) -> str:
    """Return words whose baseline begins, has its middle or ends at (x, y); what is markup in them is escaped."""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" fill="{colour}" font-size="{size}" font-weight="{weight}" '
        f'text-anchor="{anchor}">{escape(words, quote=False)}</text>'
    )


def upright(x: float, middle: float, words: str) -> str:
    """Return the title of a vertical axis, read from below."""
    return f'<g transform="rotate(-90 {x} {middle})">{text(x, middle, words, anchor="middle")}</g>'


def round_scale(floor: float, ceiling: float) -> tuple[float, float, list[float]]:
    """Return the ends of an axis that holds [floor, ceiling], a little wider, and its ticks at round numbers."""
    span = max(ceiling - floor, 1e-6)
    step = 10.0 ** math.floor(math.log10(span / 4))
    step *= next(factor for factor in (1, 2, 5, 10) if span / (step * factor) <= 5)
    low, high = math.floor(floor / step - 0.3), math.ceil(ceiling / step + 0.3)
    return low * step, high * step, [round(number * step, 10) for number in range(low, high + 1)]
