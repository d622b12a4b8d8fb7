"""The diversity report as text tables, 80 columns or wider, for two members or twenty."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import numpy as np
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from choral.ensembles.diversity_report import DiversityReport, PairwiseMatrix

_MAX_MATRIX_MEMBERS = 8  # above this only the extremes are printed
_MAX_CURVE_ROWS = 10


def render_diversity(report: DiversityReport) -> Group:
    """Return three tables: the gain and its causes, the curve, and for few members a matrix of all pairs."""
    count, regression = len(report["members"]), report["task"] == "regression"
    unit = "numbers" if regression else "samples" if report["task"] == "multiclass" else "labels of samples"
    parts: list[RenderableType] = [
        Text(f"\nGain and diversity of {count} members, view {report['view']}, {report['n']} {unit}"),
        _summary_table(report),
        _curve_table(report),
        Text(_notes(report)),
    ]
    if 2 < count <= _MAX_MATRIX_MEMBERS:
        below = "root mean squared distance" if regression else "disagreement %"
        parts += [Text(f"\nabove the diagonal: correlation of errors; below: {below}"), _matrix_table(report)]
    return Group(*parts)


def describe_independent_equivalent(report: DiversityReport) -> str:
    """Return how many independent members reach the measured error, in words."""
    number, error, mean_error = report["independent_members"], report["error"], report["mean_error"]
    if number is not None:
        return f"worth {number:.1f} independent members"
    if error == 0:
        return "no error is left: worth more independent members than can be estimated"
    if error > mean_error:
        return "worth less than one member"
    return "the mean error is 50 % or more: independent members would not help each other"


def select_curve_sizes(members: int) -> list[int]:
    """Return the ensemble sizes that the table of the curve lists: at most ten, mostly small ones."""
    if members <= _MAX_CURVE_ROWS:
        return list(range(1, members + 1))
    sizes = np.rint(np.geomspace(1, members, _MAX_CURVE_ROWS + 2)).astype(int).tolist()
    return sorted({int(size) for size in sizes})


def _summary_table(report: DiversityReport) -> Table:
    regression = report["task"] == "regression"
    table = Table(box=box.SIMPLE_HEAD, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, justify="right")
    table.add_column(overflow="fold")
    for row in _regression_rows(report) if regression else _vote_rows(report):
        table.add_row(*map(Text, row))
    label, text = ("distance of pairs (RMS)", _four_digits) if regression else ("disagreement of pairs", _percent)
    for row in (
        _pair_row(report, "correlation of errors", report["error_correlation"], _two_decimals),
        _pair_row(report, label, report["disagreement"], text),
    ):
        table.add_row(*map(Text, row))
    return table


def _vote_rows(report: DiversityReport) -> list[tuple[str, str, str]]:
    members, together, n = len(report["members"]), report["wrong_together"], report["n"]
    assert together is not None, "only regression has no votes"
    by_error = [(error, name) for error, name in zip(report["errors"], report["members"], strict=True)]
    (low, best), (high, worst) = min(by_error), max(by_error)
    unequal = report["independent_error_unequal"]
    assert unequal is not None, "only regression has no votes"
    hard = "" if report["hard_error"] is None else f"; hard vote {_percent(report['hard_error'])}"
    all_wrong = float(np.prod(report["errors"]))
    return [
        (
            "a member's error rate",
            _percent(report["mean_error"]),
            f"mean; {100 * low:.2f} ({best}) to {100 * high:.2f} ({worst})",
        ),
        (
            "error rate of the soft vote",
            _percent(report["error"]),
            f"{describe_independent_equivalent(report)}{hard}",
        ),
        (
            f"{members} independent members",
            _percent(report["independent_error"]),
            f"majority vote, all with the mean error rate; each with its own {_percent(unequal)}",
        ),
        (f"all {members} wrong", _percent(together[-1] / n), f"{_percent(all_wrong)} if they were independent"),
    ]


def _regression_rows(report: DiversityReport) -> list[tuple[str, str, str]]:
    members, unit = len(report["members"]), report["unit"]
    by_error = [(error, name) for error, name in zip(report["errors"], report["members"], strict=True)]
    (low, best), (high, worst) = min(by_error), max(by_error)
    ambiguity = report["mean_error"] - report["error"]
    return [
        (
            "a member's squared error",
            _four_digits(report["mean_error"]),
            f"mean; {_four_digits(low)} ({best}) to {_four_digits(high)} ({worst}); in {unit}",
        ),
        (
            "squared error of the mean",
            _four_digits(report["error"]),
            f"lower by the members' ambiguity, {_four_digits(ambiguity)}; {describe_independent_equivalent(report)}",
        ),
        (
            f"{members} independent members",
            _four_digits(report["independent_error"]),
            "if errors had mean 0 and no correlation",
        ),
    ]


def _curve_table(report: DiversityReport) -> Table:
    votes = report["task"] != "regression"
    score = "soft vote %" if votes else "RMSE of the mean"
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("members", score, "spread", "independent %" if votes else "independent", "subsets"):
        table.add_column(heading, no_wrap=True, justify="right")
    points = {point["members"]: point for point in report["curve"]}
    for size in select_curve_sizes(len(report["members"])):
        point = points[size]
        text = _percentage_points if votes else _four_digits
        spread = text(point["spread"]) if point["subsets"] > 1 else "-"
        possible = "" if point["subsets"] == point["possible"] else f" of {point['possible']}"
        subsets = f"{point['subsets']}{possible}"
        table.add_row(str(size), text(point["value"]), spread, text(point["independent"]), subsets)
    return table


def _matrix_table(report: DiversityReport) -> Table:
    """Return correlations above the diagonal, disagreement below; columns are numbered, because names are long."""
    votes = report["task"] != "regression"
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(overflow="fold")
    for number in range(len(report["members"])):
        table.add_column(str(number + 1), no_wrap=True, justify="right")
    correlations, distances = report["error_correlation"]["matrix"], report["disagreement"]["matrix"]
    for row, name in enumerate(report["members"]):
        cells = []
        for column in range(len(report["members"])):
            distance = distances[row][column] or 0.0
            distance_text = _percentage_points(distance) if votes else _four_digits(distance)
            correlation = correlations[row][column]
            correlation_text = "-" if correlation is None else _two_decimals(correlation)
            cells.append(correlation_text if column > row else distance_text if column < row else "")
        table.add_row(Text(f"{row + 1} {name}"), *cells)
    return table


def _notes(report: DiversityReport) -> str:
    if report["task"] == "regression":
        return (
            "root of the mean squared error over subsets of each size, spread: standard deviation of their RMSE; "
            "independent: members with uncorrelated errors of mean 0"
        )
    return (
        "mean over subsets of each size, spread: their standard deviation; independent: majority vote of members with the "
        "mean error rate and independent errors (binomial; a tie counts half)"
    )


def _pair_row(
    report: DiversityReport, label: str, pairs: PairwiseMatrix, text: Callable[[float], str]
) -> tuple[str, str, str]:
    """Return the mean over pairs, and the lowest and the highest value with their pairs."""
    if pairs["mean"] is None:
        return label, "-", "undefined for members that are always correct or always wrong"
    names, matrix = report["members"], pairs["matrix"]
    defined = [
        (value, f"{names[row]} and {names[column]}")
        for row, column in combinations(range(len(names)), 2)
        if (value := matrix[row][column]) is not None
    ]
    (low, least), (high, most) = min(defined), max(defined)
    extremes = "" if len(defined) == 1 else f"mean; {text(low)} ({least}) to {text(high)} ({most})"
    return label, text(pairs["mean"]), extremes


def _percent(value: float) -> str:
    return f"{100 * value:.2f} %" if value == 0 or value >= 5e-5 else f"{100 * value:.1e} %"


def _percentage_points(value: float) -> str:
    return f"{100 * value:.2f}"


def _four_digits(value: float) -> str:
    return f"{value:.4g}"


def _two_decimals(value: float) -> str:
    return f"{value:.2f}"
