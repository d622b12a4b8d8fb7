"""Diversity as a figure: the curve over the number of members beside that of independent ones, and who errs with whom."""

from __future__ import annotations

from collections.abc import Sequence

from choral.core.svg import CURVE, GRID, INK, MARK, QUIET, line, page, polyline, round_scale, text, upright
from choral.ensembles.diversity_rows import Diversity
from choral.ensembles.diversity_table import worth

_LEFT, _TOP, _WIDTH, _HEIGHT = 76, 92, 420, 300
_GAP, _MARGIN, _FOOT = 40, 28, 106
_LONGEST, _LETTER = 26, 6.8  # letters of a name, and pixels of a letter at size 12
_MAP, _NUMBERED = 420, 28  # pixels: of the heat map, and of a cell that has room for its number


def draw_diversity(found: Diversity, split: str) -> str:
    """Return an SVG image of the curve and of the correlations of errors.

    Args:
        found: of at least two members.
        split: that it is of, for the title.
    """
    members = len(found["members"])
    names = [_shortened(name) for name in found["members"]]
    cell = max(18.0, min(52.0, _MAP / members))
    gutter = max(map(len, names)) * _LETTER + 32
    left = _LEFT + _WIDTH + _GAP + gutter
    width = max(round(left + cell * members + _MARGIN), 860)
    height = round(max(_TOP + _HEIGHT + _FOOT, _TOP + cell * members + 60))
    title = f"{split}: {members} members, view {found['view']}"
    parts = [text(_LEFT, 30, title, size=16, weight="bold")]
    parts += [text(_LEFT, 52, _summary(found), QUIET)]
    return page(width, height, [*parts, *_curve(found), *_heat_map(found, names, left, cell)])


def _curve(found: Diversity) -> list[str]:
    steps, votes = found["curve"], found["metric"] != "rmse"
    factor = 100.0 if votes else 1.0
    values = [factor * step[key] for step in steps for key in ("low", "high", "independent")]
    low, high, ticks = round_scale(min(values), max(values))
    if votes:  # no accuracy is above 100 %
        high, ticks = min(high, 100.0), [tick for tick in ticks if tick <= 100]
    members, bottom = len(steps), _TOP + _HEIGHT

    def x(size: float) -> float:
        return _LEFT + 14 + (size - 1) / (members - 1) * (_WIDTH - 28)

    def y(value: float) -> float:
        return bottom - (factor * value - low) / (high - low) * _HEIGHT

    parts = []
    for tick in ticks:
        place = y(tick / factor)
        parts += [line(_LEFT, place, _LEFT + _WIDTH, place, GRID)]
        parts += [text(_LEFT - 10, place + 4.5, f"{tick:g}", QUIET, anchor="end")]
    for size in _ticks(members):
        parts += [line(x(size), bottom, x(size), bottom + 5, QUIET)]
        parts += [text(x(size), bottom + 21, str(size), QUIET, anchor="middle")]
    parts.append(line(_LEFT, bottom, _LEFT + _WIDTH, bottom, QUIET))
    band = [
        *((step["members"], step["low"]) for step in steps),
        *((step["members"], step["high"]) for step in steps[::-1]),
    ]
    edge = " ".join(f"{x(size):.1f},{y(value):.1f}" for size, value in band)
    parts.append(f'<polygon points="{edge}" fill="{CURVE}" fill-opacity="0.15"/>')
    independent = [(x(step["members"]), y(step["independent"])) for step in steps]
    measured = [(x(step["members"]), y(step["value"])) for step in steps]
    parts += [polyline(independent, MARK, 2, "6 4"), polyline(measured, CURVE)]
    parts += [f'<circle cx="{place:.1f}" cy="{height:.1f}" r="3.5" fill="{CURVE}"/>' for place, height in measured]
    rule = "soft vote" if votes else "mean of members"
    others = "independent members, by majority" if votes else "members with uncorrelated errors of mean 0"
    for place, colour, dash, words in (
        (bottom + 70, CURVE, "", f"{rule}: mean over subsets; band: worst to best"),
        (bottom + 90, MARK, "6 4", f"{others}; the same mean error"),
    ):
        parts += [
            line(_LEFT, place - 4.5, _LEFT + 26, place - 4.5, colour, 2.5, dash),
            text(_LEFT + 34, place, words, QUIET, size=12),
        ]
    axis = {"accuracy": "accuracy, %", "label_accuracy": "labels that are right, %", "rmse": "RMSE"}[found["metric"]]
    parts.append(text(_LEFT + _WIDTH / 2, bottom + 44, "number of members", anchor="middle"))
    return [*parts, upright(20, _TOP + _HEIGHT / 2, axis)]


def _heat_map(found: Diversity, names: Sequence[str], left: float, cell: float) -> list[str]:
    parts, size = [], 13 if cell >= 40 else 11
    middle = cell / 2 + size * 0.36
    small = 12 if cell >= _NUMBERED else 10
    for row, name in enumerate(names):
        top = _TOP + row * cell
        parts.append(text(left - 30, top + cell / 2 + 4.3, name, size=12, anchor="end"))
        parts.append(text(left - 8, top + cell / 2 + 4.3, str(row + 1), QUIET, size=small, anchor="end"))
        parts.append(text(left + (row + 0.5) * cell, _TOP - 8, str(row + 1), QUIET, size=small, anchor="middle"))
        for column, value in enumerate(found["error_correlation"]["matrix"][row]):
            fill, ink = ("#f1f3f5", QUIET) if value is None or row == column else _colours(value)
            parts.append(
                f'<rect x="{left + column * cell:.1f}" y="{top:.1f}" width="{cell:.1f}" height="{cell:.1f}" fill="{fill}" '
                'stroke="white"/>'
            )
            if row != column and cell >= _NUMBERED:
                shown = "-" if value is None else f"{value:.2f}"
                parts.append(text(left + (column + 0.5) * cell, top + middle, shown, ink, size=size, anchor="middle"))
    mean = found["error_correlation"]["mean"]
    about = "correlation of errors" + ("" if mean is None else f", mean {mean:.2f}")
    bottom = _TOP + cell * len(names)
    parts.append(text(left + cell * len(names), bottom + 24, about, anchor="end"))
    return [
        *parts,
        text(left + cell * len(names), bottom + 42, "white 0, blue 1, orange -1", QUIET, size=12, anchor="end"),
    ]


def _summary(found: Diversity) -> str:
    if found["metric"] == "rmse":
        return f"mean squared error of a member {found['mean_error']:.4g}, of their mean {found['error']:.4g}: {worth(found)}"
    return f"a member errs on {found['mean_error']:.2%}, their soft vote on {found['error']:.2%}: {worth(found)}"


def _colours(value: float) -> tuple[str, str]:
    """Return the colour of a correlation, and one in which a number can be read on it."""
    end = CURVE if value >= 0 else MARK
    strength = min(abs(value), 1.0)
    mixed = [round(255 + strength * (int(end[place : place + 2], 16) - 255)) for place in (1, 3, 5)]
    return "#{:02x}{:02x}{:02x}".format(*mixed), "white" if strength > 0.55 else INK


def _ticks(members: int) -> list[int]:
    every = -(-members // 10)
    return [size for size in range(1, members + 1) if size % every == 0 or size == 1]


def _shortened(name: str) -> str:
    """Return a name without its middle, if it is long: members differ at their ends."""
    if len(name) <= _LONGEST:
        return name
    head = (_LONGEST - 1) // 2
    return f"{name[:head]}…{name[-(_LONGEST - 1 - head) :]}"
