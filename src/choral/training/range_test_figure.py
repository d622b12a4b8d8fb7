"""The curve of a range test as a self-contained SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence

from choral.core.svg import CURVE, GRID, MARK, QUIET, line, page, polyline, round_scale, text, upright

_WIDTH, _HEIGHT = 720, 420
_LEFT, _RIGHT, _TOP, _BOTTOM = 76, 24, 56, 60
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def draw_curve(rates: Sequence[float], losses: Sequence[float], smoothed: Sequence[float], chosen: float | None) -> str:
    """Return an SVG image: loss over learning rate, on a logarithmic axis.

    Args:
        rates, losses, smoothed: of each step; rates ascend from above 0.
        chosen: the rate to mark; None: none was found.
    """
    first, last = math.floor(math.log10(rates[0]) + 1e-9), math.ceil(math.log10(rates[-1]) - 1e-9)
    low, high, ticks = _scale(losses, smoothed)
    last = max(last, first + 1)

    def x(rate: float) -> float:
        share = (math.log10(rate) - first) / (last - first)
        return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)

    def y(loss: float) -> float:
        share = (min(loss, 9 * high) - low) / (high - low)  # what lies outside is clipped
        return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)

    parts = [
        f'<clipPath id="plot"><rect x="{_LEFT}" y="{_TOP}" width="{_WIDTH - _LEFT - _RIGHT}" '
        f'height="{_HEIGHT - _TOP - _BOTTOM}"/></clipPath>',
        text(_LEFT, 28, "Learning-rate range test", size=16, weight="bold"),
    ]
    for tick in ticks:
        parts.append(line(_LEFT, y(tick), _WIDTH - _RIGHT, y(tick), GRID))
        parts.append(text(_LEFT - 10, y(tick) + 4.5, f"{tick:g}", QUIET, anchor="end"))
    for power in range(first, last + 1):
        parts.append(line(x(10.0**power), _HEIGHT - _BOTTOM, x(10.0**power), _HEIGHT - _BOTTOM + 5, QUIET))
        label = f"10{str(power).translate(_SUPERSCRIPTS)}"
        parts.append(text(x(10.0**power), _HEIGHT - _BOTTOM + 21, label, QUIET, anchor="middle"))
    parts.append(line(_LEFT, _HEIGHT - _BOTTOM, _WIDTH - _RIGHT, _HEIGHT - _BOTTOM, QUIET))
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(text(middle, _HEIGHT - 14, "learning rate (per step, logarithmic)", anchor="middle"))
    parts.append(upright(20, (_TOP + _HEIGHT - _BOTTOM) / 2, "training loss"))
    dots = (
        f'<circle cx="{x(rate):.1f}" cy="{y(loss):.1f}" r="2"/>'
        for rate, loss in zip(rates, losses, strict=True)
        if low <= loss <= high
    )
    parts.append(f'<g fill="{CURVE}" fill-opacity="0.3">{"".join(dots)}</g>')
    points = [(x(rate), y(loss)) for rate, loss in zip(rates, smoothed, strict=True)]
    parts.append(polyline(points, CURVE, clip="plot"))
    if chosen is not None:
        place = x(chosen)
        left_half = place < middle
        parts.append(line(place, _TOP - 4, place, _HEIGHT - _BOTTOM, MARK, width=1.5, dash="5 4"))
        label, anchor = f"chosen: {chosen:.1e}", "start" if left_half else "end"
        parts.append(text(place + (7 if left_half else -7), _TOP + 6, label, MARK, anchor=anchor))
    parts.append(text(_WIDTH - _RIGHT, 28, "dots: each step; line: smoothed", QUIET, anchor="end"))
    return page(_WIDTH, _HEIGHT, parts)


def _scale(losses: Sequence[float], smoothed: Sequence[float]) -> tuple[float, float, list[float]]:
    """Return the ends of the loss axis and its ticks at round numbers; a divergence at the end does not flatten the rest."""
    floor = min(losses)
    return round_scale(floor, min(max(smoothed), max(losses[:10]) + 0.5 * (max(losses[:10]) - floor)))
