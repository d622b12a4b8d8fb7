"""The scoreboard as a figure: the metric with its interval over the steps."""

from __future__ import annotations

from choral.core.svg import CURVE, GRID, INK, MARK, QUIET, line, page, polyline, round_scale, text, upright
from choral.ensembles.score_table import METRICS as HEADINGS
from choral.scoring.scoreboard.rows import BoardTable
from choral.scoring.stored_predictor import LESS_IS_BETTER

_LEFT, _TOP, _HEIGHT, _STEP, _RIGHT = 84, 92, 300, 44, 60
_LETTER = 6.6  # pixels of a letter at size 12
_LONGEST = 28  # letters of a name


def draw_board(table: BoardTable, uses: str = "") -> str:
    """Return an SVG image: a point with its interval a step, those of a run beside each other, the best one marked.

    Args:
        table: of steps that have the metric.
        looks: how often the split was looked at, for the line below the title.
    """
    metric = table["metric"]
    factor = 100.0 if metric in ("accuracy", "mean_ap") else 1.0
    rows = [row for row in table["rows"] if metric in row["metrics"]]
    ends = [factor * row["metrics"][metric][key] for row in rows for key in ("low", "high")]
    low, high, ticks = round_scale(min(ends), max(ends))
    if factor == 100.0:  # no share is above 100 %
        high, ticks = min(high, 100.0), [tick for tick in ticks if tick <= 100]
    names = [_shortened(row["name"].removeprefix(row["step"]).strip() if row["part"] else row["name"]) for row in rows]
    foot = 40 + 0.72 * _LETTER * max(map(len, names))
    width = max(round(_LEFT + _STEP * len(rows) + _RIGHT), 760)
    wide, bottom = width - _LEFT - _RIGHT, _TOP + _HEIGHT
    every = min(wide / len(rows), 110)

    def x(place: int) -> float:
        return _LEFT + (place + 0.5) * every

    def y(value: float) -> float:
        return bottom - (factor * value - low) / (high - low) * _HEIGHT

    better = "less is better" if metric in LESS_IS_BETTER else "more is better"
    title = f"{table['project']}: {table['samples']} samples of {table['split']}"
    parts = [text(_LEFT, 30, title, size=16, weight="bold")]
    parts.append(
        text(
            _LEFT,
            52,
            f"95 % intervals by bootstrap over the samples; {better}; orange: best; open: first row of each run",
            QUIET,
        )
    )
    parts.append(text(_LEFT, 71, uses, QUIET, size=12))
    for tick in ticks:
        place = y(tick / factor)
        parts += [line(_LEFT, place, _LEFT + wide, place, GRID)]
        parts.append(text(_LEFT - 10, place + 4.5, f"{tick:g}", QUIET, anchor="end"))
    parts.append(line(_LEFT, bottom, _LEFT + wide, bottom, QUIET))
    firsts = [number for number, row in enumerate(rows) if row["part"] == ""]
    path = [(x(number), y(rows[number]["metrics"][metric]["value"])) for number in firsts]
    if len(path) > 1:
        parts.append(polyline(path, CURVE, 1.5, "5 4"))
    for number, (row, name) in enumerate(zip(rows, names, strict=True)):
        own, best = row["metrics"][metric], row["id"] == table["best"]
        colour, place = (MARK if best else CURVE), x(number)
        if number and row["part"] == "":
            parts.append(line(place - every / 2, _TOP, place - every / 2, bottom + 8, GRID))
        parts.append(line(place, y(own["low"]), place, y(own["high"]), colour, 2))
        parts += [line(place - 5, y(own[end]), place + 5, y(own[end]), colour, 2) for end in ("low", "high")]
        fill = colour if row["part"] or best else "white"
        parts.append(
            f'<circle cx="{place:.1f}" cy="{y(own["value"]):.1f}" r="5" fill="{fill}" stroke="{colour}" stroke-width="2"/>'
        )
        ink = INK if row["part"] == "" or best else QUIET
        label = text(place + 5, bottom + 20, name, ink, size=12, weight="bold" if best else "normal", anchor="end")
        parts.append(f'<g transform="rotate(-42 {place + 5:.1f} {bottom + 20})">{label}</g>')
    parts.append(upright(22, _TOP + _HEIGHT / 2, HEADINGS[metric].replace(" %", ", %")))
    return page(width, round(bottom + foot), parts)


def _shortened(name: str) -> str:
    """Return a name without its middle, if it is long: steps differ at their ends."""
    if len(name) <= _LONGEST:
        return name
    head = (_LONGEST - 1) // 2
    return f"{name[:head]}…{name[-(_LONGEST - 1 - head) :]}"
