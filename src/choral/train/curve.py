"""The curve of a range test as a self-contained SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence

_WIDTH, _HEIGHT = 720, 420
_LEFT, _RIGHT, _TOP, _BOTTOM = 76, 24, 56, 60
_INK, _QUIET, _GRID, _CURVE, _MARK = "#1f2933", "#66727f", "#e4e8ec", "#1565a8", "#c2410c"
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
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}" '
        'font-family="Helvetica, Arial, sans-serif" font-size="13">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        f'<clipPath id="plot"><rect x="{_LEFT}" y="{_TOP}" width="{_WIDTH - _LEFT - _RIGHT}" '
        f'height="{_HEIGHT - _TOP - _BOTTOM}"/></clipPath>',
        _text(_LEFT, 28, "Learning-rate range test", size=16, weight="bold"),
    ]
    for tick in ticks:
        parts.append(_line(_LEFT, y(tick), _WIDTH - _RIGHT, y(tick), _GRID))
        parts.append(_text(_LEFT - 10, y(tick) + 4.5, f"{tick:g}", _QUIET, anchor="end"))
    for power in range(first, last + 1):
        parts.append(_line(x(10.0**power), _HEIGHT - _BOTTOM, x(10.0**power), _HEIGHT - _BOTTOM + 5, _QUIET))
        label = f"10{str(power).translate(_SUPERSCRIPTS)}"
        parts.append(_text(x(10.0**power), _HEIGHT - _BOTTOM + 21, label, _QUIET, anchor="middle"))
    parts.append(_line(_LEFT, _HEIGHT - _BOTTOM, _WIDTH - _RIGHT, _HEIGHT - _BOTTOM, _QUIET))
    middle = (_TOP + _HEIGHT - _BOTTOM) / 2
    parts.append(
        _text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 14, "learning rate (per step, logarithmic)", anchor="middle")
    )
    parts.append(f'<g transform="rotate(-90 20 {middle})">{_text(20, middle, "training loss", anchor="middle")}</g>')
    dots = (
        f'<circle cx="{x(rate):.1f}" cy="{y(loss):.1f}" r="2"/>'
        for rate, loss in zip(rates, losses, strict=True)
        if low <= loss <= high
    )
    parts.append(f'<g fill="{_CURVE}" fill-opacity="0.3">{"".join(dots)}</g>')
    points = " ".join(f"{x(rate):.1f},{y(loss):.1f}" for rate, loss in zip(rates, smoothed, strict=True))
    parts.append(
        f'<polyline clip-path="url(#plot)" points="{points}" fill="none" stroke="{_CURVE}" stroke-width="2.5" '
        'stroke-linejoin="round"/>'
    )
    if chosen is not None:
        place = x(chosen)
        left_half = place < (_LEFT + _WIDTH - _RIGHT) / 2
        parts.append(_line(place, _TOP - 4, place, _HEIGHT - _BOTTOM, _MARK, width=1.5, dash="5 4"))
        label = f"chosen: {chosen:.1e}"
        parts.append(
            _text(place + (7 if left_half else -7), _TOP + 6, label, _MARK, anchor="start" if left_half else "end")
        )
    legend = _WIDTH - _RIGHT
    parts.append(_text(legend, 28, "dots: each step; line: smoothed", _QUIET, anchor="end"))
    return "\n".join([*parts, "</svg>\n"])


def _scale(losses: Sequence[float], smoothed: Sequence[float]) -> tuple[float, float, list[float]]:
    """Return the ends of the loss axis and its ticks at round numbers; a divergence at the end does not flatten the rest."""
    floor = min(losses)
    ceiling = min(max(smoothed), max(losses[:10]) + 0.5 * (max(losses[:10]) - floor))
    span = max(ceiling - floor, 1e-6)
    step = 10.0 ** math.floor(math.log10(span / 4))
    step *= next(factor for factor in (1, 2, 5, 10) if span / (step * factor) <= 5)
    low, high = math.floor(floor / step - 0.3), math.ceil(ceiling / step + 0.3)
    return low * step, high * step, [round(number * step, 10) for number in range(low, high + 1)]


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, width: float = 1.0, dash: str = "") -> str:
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" stroke-width="{width}"{dashes}/>'


def _text(
    x: float, y: float, text: str, colour: str = _INK, *, size: int = 13, weight: str = "normal", anchor: str = "start"
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" fill="{colour}" font-size="{size}" font-weight="{weight}" '
        f'text-anchor="{anchor}">{text}</text>'
    )
