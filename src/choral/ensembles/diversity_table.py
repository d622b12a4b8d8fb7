"""Diversity as tables for people, in 80 columns or more, for two members or twenty."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import numpy as np
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from choral.ensembles.diversity_rows import Diversity, Pairs

_LARGEST_MATRIX = 8  # members; of more, the extremes are named
_MOST_STEPS = 10


def render_diversity(found: Diversity) -> Group:
    """Return three tables: what is gained and why, the curve, and of few members what each pair has in common."""
    count, numbers = len(found["members"]), found["task"] == "regression"
    things = "numbers" if numbers else "samples" if found["task"] == "multiclass" else "labels of samples"
    parts: list[RenderableType] = [
        Text(f"\nGain and diversity of {count} members, view {found['view']}, {found['n']} {things}"),
        _facts(found),
        _curve(found),
        Text(_notes(found)),
    ]
    if 2 < count <= _LARGEST_MATRIX:
        below = "root mean squared distance" if numbers else "disagreement %"
        parts += [Text(f"\nabove the diagonal: correlation of errors; below: {below}"), _matrix(found)]
    return Group(*parts)


def worth(found: Diversity) -> str:
    """Return in words how many independent members the measured error is worth."""
    number, error, mean = found["independent_members"], found["error"], found["mean_error"]
    if number is not None:
        return f"worth {number:.1f} independent members"
    if error == 0:
        return "no error is left: worth more independent members than can be told"
    if error > mean:
        return "worth less than one member"
    return "a member errs as often as not: independent ones would not help each other"


def shown_sizes(members: int) -> list[int]:
    """Return the sizes of ensembles that the table of the curve shows: at most ten, small ones above all."""
    if members <= _MOST_STEPS:
        return list(range(1, members + 1))
    sizes = np.rint(np.geomspace(1, members, _MOST_STEPS + 2)).astype(int).tolist()
    return sorted({int(size) for size in sizes})


def _facts(found: Diversity) -> Table:
    numbers = found["task"] == "regression"
    table = Table(box=box.SIMPLE_HEAD, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, justify="right")
    table.add_column(overflow="fold")
    for row in _number_facts(found) if numbers else _vote_facts(found):
        table.add_row(*map(Text, row))
    label, form = ("distance of two (RMS)", _short) if numbers else ("disagreement of two", _percent)
    for row in (
        _pair_facts(found, "correlation of errors", found["error_correlation"], _two),
        _pair_facts(found, label, found["disagreement"], form),
    ):
        table.add_row(*map(Text, row))
    return table


def _vote_facts(found: Diversity) -> list[tuple[str, str, str]]:
    members, together, n = len(found["members"]), found["wrong_together"], found["n"]
    assert together is not None, "votes have been counted"
    own = [(error, name) for error, name in zip(found["errors"], found["members"], strict=True)]
    (low, best), (high, worst) = min(own), max(own)
    unequal = found["independent_error_unequal"]
    assert unequal is not None, "votes have been counted"
    hard = "" if found["hard_error"] is None else f"; hard vote {_percent(found['hard_error'])}"
    alone = float(np.prod(found["errors"]))
    return [
        (
            "error of a member",
            _percent(found["mean_error"]),
            f"mean; {100 * low:.2f} ({best}) to {100 * high:.2f} ({worst})",
        ),
        ("error of the soft vote", _percent(found["error"]), f"{worth(found)}{hard}"),
        (
            f"{members} independent members",
            _percent(found["independent_error"]),
            f"by majority, all with the mean error; each with its own {_percent(unequal)}",
        ),
        (f"all {members} wrong", _percent(together[-1] / n), f"{_percent(alone)} if they were independent"),
    ]


def _number_facts(found: Diversity) -> list[tuple[str, str, str]]:
    members, unit = len(found["members"]), found["unit"]
    own = [(error, name) for error, name in zip(found["errors"], found["members"], strict=True)]
    (low, best), (high, worst) = min(own), max(own)
    ambiguity = found["mean_error"] - found["error"]
    return [
        (
            "squared error of a member",
            _short(found["mean_error"]),
            f"mean; {_short(low)} ({best}) to {_short(high)} ({worst}); in {unit}",
        ),
        (
            "of the mean of all",
            _short(found["error"]),
            f"less by the members' ambiguity, {_short(ambiguity)}; {worth(found)}",
        ),
        (
            f"{members} independent members",
            _short(found["independent_error"]),
            "if errors had mean 0 and no correlation",
        ),
    ]


def _curve(found: Diversity) -> Table:
    votes = found["task"] != "regression"
    rule = "soft vote %" if votes else "RMSE of the mean"
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("members", rule, "spread", "independent %" if votes else "independent", "subsets"):
        table.add_column(heading, no_wrap=True, justify="right")
    steps = {step["members"]: step for step in found["curve"]}
    for size in shown_sizes(len(found["members"])):
        step = steps[size]
        form = _points if votes else _short
        spread = form(step["spread"]) if step["subsets"] > 1 else "-"
        of = "" if step["subsets"] == step["possible"] else f" of {step['possible']}"
        table.add_row(str(size), form(step["value"]), spread, form(step["independent"]), f"{step['subsets']}{of}")
    return table


def _matrix(found: Diversity) -> Table:
    """Correlations above the diagonal, disagreement below; columns by number, for names are long."""
    votes = found["task"] != "regression"
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(overflow="fold")
    for number in range(len(found["members"])):
        table.add_column(str(number + 1), no_wrap=True, justify="right")
    correlation, other = found["error_correlation"]["matrix"], found["disagreement"]["matrix"]
    for row, name in enumerate(found["members"]):
        cells = []
        for column in range(len(found["members"])):
            distance = other[row][column] or 0.0
            shown = _points(distance) if votes else _short(distance)
            phi = correlation[row][column]
            alike = "-" if phi is None else _two(phi)
            cells.append(alike if column > row else shown if column < row else "")
        table.add_row(Text(f"{row + 1} {name}"), *cells)
    return table


def _notes(found: Diversity) -> str:
    if found["task"] == "regression":
        return (
            "root of the mean squared error over subsets of each size, spread: standard deviation of their RMSE; "
            "independent: members with uncorrelated errors of mean 0"
        )
    return (
        "mean over subsets of each size, spread: their standard deviation; independent: members of the mean error whose "
        "errors are independent, by majority (binomial; a tie counts half)"
    )


def _pair_facts(found: Diversity, label: str, pairs: Pairs, form: Callable[[float], str]) -> tuple[str, str, str]:
    """Return the mean over pairs, and the lowest and the highest with those that they are of."""
    if pairs["mean"] is None:
        return label, "-", "members that are always right, or always wrong, have none"
    names, matrix = found["members"], pairs["matrix"]
    known = [
        (value, f"{names[row]} and {names[column]}")
        for row, column in combinations(range(len(names)), 2)
        if (value := matrix[row][column]) is not None
    ]
    (low, least), (high, most) = min(known), max(known)
    ends = "" if len(known) == 1 else f"mean; {form(low)} ({least}) to {form(high)} ({most})"
    return label, form(pairs["mean"]), ends


def _percent(value: float) -> str:
    return f"{100 * value:.2f} %" if value == 0 or value >= 5e-5 else f"{100 * value:.1e} %"


def _points(value: float) -> str:
    return f"{100 * value:.2f}"


def _short(value: float) -> str:
    return f"{value:.4g}"


def _two(value: float) -> str:
    return f"{value:.2f}"
