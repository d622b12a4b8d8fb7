"""Calibration as a figure: how often predictions come true, and the accuracy that is left without the least sure ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from choral.core.svg import CURVE, GRID, INK, MARK, QUIET, line, page, polyline, round_scale, text, upright

_LEFT, _TOP, _SIDE, _GAP, _FOOT = 76, 92, 360, 96, 116
_WIDTH = 2 * _SIDE + _LEFT + _GAP + 28
_Place = Callable[[float], float]


def draw_calibration(report: Mapping[str, Any]) -> str:
    """Return an SVG image of a report of `calibrate_run` that has probabilities."""
    title = f"{report['split']}: {report['of']}, {report['n']} samples, calibration by {report['method']}"
    ece = report["metrics"]["ece"]
    summary = "calibration error (debiased) " + ", ".join(
        f"{100 * ece[name]['value']:.1f} % [{100 * ece[name]['low']:.1f}, {100 * ece[name]['high']:.1f}] {name}"
        for name in ("before", "after")
    )
    parts = [text(_LEFT, 30, title, size=16, weight="bold"), text(_LEFT, 52, summary, QUIET)]
    parts += _reliability(report, _LEFT)
    if "selective" in report:
        parts += _selective(report["selective"], _LEFT + _SIDE + _GAP)
    return page(_WIDTH if "selective" in report else _LEFT + _SIDE + 60, _TOP + _SIDE + _FOOT, parts)


def _reliability(report: Mapping[str, Any], left: float) -> list[str]:
    bins = report["reliability"]
    every = [*bins["before"], *bins["after"]]
    low, high, ticks = _percent_scale(min(min(one["confidence"], one["low"]) for one in every), 1.0)
    x, y = _scales(left, (low, high), (low, high))
    parts = _axes(left, x, y, ticks, ticks)
    parts.append(line(x(low), y(low), x(high), y(high), QUIET, 1.5, "6 4"))
    for name, colour in (("before", MARK), ("after", CURVE)):
        places = [(x(100 * one["confidence"]), y(100 * one["right"])) for one in bins[name]]
        parts.append(polyline(places, colour, 2, "2 3" if name == "before" else ""))
        for one, (place, height) in zip(bins[name], places, strict=True):
            if name == "after":
                parts.append(line(place, y(100 * one["low"]), place, y(100 * one["high"]), colour, 1.5))
            fill = colour if name == "after" else "white"
            parts.append(
                f'<circle cx="{place:.1f}" cy="{height:.1f}" r="4" fill="{fill}" stroke="{colour}" stroke-width="1.8"/>'
            )
    foot, count = _TOP + _SIDE + 72, bins["after"][0]["n"]
    sure = (
        "probability of the class that was said, %" if report["task"] == "multiclass" else "probability of a label, %"
    )
    parts.append(text(left + _SIDE / 2, _TOP + _SIDE + 44, sure, anchor="middle"))
    parts.append(upright(left - 52, _TOP + _SIDE / 2, "right, %" if report["task"] == "multiclass" else "applies, %"))
    parts.append(_legend(left, foot, MARK, "2 3", f"before; {len(bins['after'])} bins of some {count} each"))
    parts.append(_legend(left, foot + 20, CURVE, "", f"after {report['method']}, with 95 % intervals"))
    return [*parts, _legend(left, foot + 38, QUIET, "6 4", "as often right as it says")]


def _selective(curve: Mapping[str, Sequence[float]], left: float) -> list[str]:
    floor = min(curve["low"])
    low, high, ticks = _percent_scale(floor, 1.0)
    x, y = _scales(left, (0.0, 100.0), (low, high))
    parts = _axes(left, x, y, [0, 20, 40, 60, 80, 100], ticks)
    band = [*zip(curve["coverage"], curve["low"], strict=True)]
    band += [*zip(reversed(curve["coverage"]), reversed(curve["high"]), strict=True)]
    edge = " ".join(f"{x(100 * place):.1f},{y(100 * value):.1f}" for place, value in band)
    parts.append(f'<polygon points="{edge}" fill="{CURVE}" fill-opacity="0.15"/>')
    points = [(x(100 * a), y(100 * b)) for a, b in zip(curve["coverage"], curve["accuracy"], strict=True)]
    parts.append(polyline(points, CURVE))
    parts.append(text(left + _SIDE / 2, _TOP + _SIDE + 44, "answered, the surest first, % of samples", anchor="middle"))
    parts.append(upright(left - 52, _TOP + _SIDE / 2, "accuracy of what is answered, %"))
    return [*parts, _legend(left, _TOP + _SIDE + 72, CURVE, "", "the least sure are left to a person; 95 % band")]


def _legend(left: float, height: float, colour: str, dash: str, words: str) -> str:
    return line(left, height - 4.5, left + 26, height - 4.5, colour, 2.5, dash) + text(
        left + 34, height, words, QUIET, size=12
    )


def _scales(left: float, across: tuple[float, float], up: tuple[float, float]) -> tuple[_Place, _Place]:
    """Return the pixels of a number on either axis."""

    def x(value: float) -> float:
        return left + (value - across[0]) / (across[1] - across[0]) * _SIDE

    def y(value: float) -> float:
        return _TOP + _SIDE - (value - up[0]) / (up[1] - up[0]) * _SIDE

    return x, y


def _axes(left: float, x: _Place, y: _Place, across: Sequence[float], up: Sequence[float]) -> list[str]:
    parts, bottom = [], _TOP + _SIDE
    for tick in up:
        parts += [line(left, y(tick), left + _SIDE, y(tick), GRID)]
        parts += [text(left - 10, y(tick) + 4.5, f"{tick:g}", QUIET, anchor="end")]
    for tick in across:
        parts += [line(x(tick), bottom, x(tick), bottom + 5, QUIET)]
        parts += [text(x(tick), bottom + 21, f"{tick:g}", QUIET, anchor="middle")]
    return [*parts, line(left, bottom, left + _SIDE, bottom, INK)]


def _percent_scale(floor: float, ceiling: float) -> tuple[float, float, list[float]]:
    """Return the ends and ticks of an axis of shares in per cent; none is below 0 or above 100."""
    low, high, ticks = round_scale(100 * floor, 100 * ceiling)
    low, high = max(low, 0.0), min(high, 100.0)
    return low, high, [tick for tick in ticks if low <= tick <= high]
