"""Diversity reports against NumPy for every task, and their tables and figure for two to thirty members."""

from __future__ import annotations

import io
import json
import re
from itertools import combinations
from math import comb, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from choral.core.figures import render_svg
from choral.ensembles.diversity import MIN_SUBSETS, compute_diversity
from choral.ensembles.diversity_figure import draw_diversity
from choral.ensembles.diversity_report import DiversityReport
from choral.ensembles.diversity_table import describe_independent_equivalent, render_diversity, select_curve_sizes
from choral.ensembles.regression_diversity import compute_regression_diversity
from choral.ensembles.score_run import score_run, to_json
from choral.ensembles.subsets import choose_subsets
from choral.inference import ledger as ledger_module
from choral.inference.ledger import Ledger, LedgerMeta, build_ledger_table, merge_parts, write_part
from choral.metrics.independent_members import majority_error
from drawn_figures import misplaced_texts, svg_texts

COUNT = 700


def ledger(folder: Path, task: str, labels: np.ndarray, stack: np.ndarray, names: tuple[str, ...] = ()) -> Ledger:
    names = names or tuple(f"m{number}" for number in range(len(stack)))
    classes = tuple(f"c{number}" for number in range(stack.shape[2]))
    meta = LedgerMeta(classes, names, ("identity",), "test", "d", "e", (), task)
    keys = [f"k{number:05d}" for number in range(len(labels))]
    columns = {(name, "identity"): values.astype(np.float32) for name, values in zip(names, stack, strict=True)}
    write_part(folder / "parts", 0, 1, build_ledger_table(meta, keys, labels, columns))
    merge_parts(folder / "parts", 1, keys, folder / "test.parquet", meta)
    return Ledger.open(folder / "test.parquet")


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_module, "_BLOCK_BYTES", 1)  # 256 samples, the least


def votes(members: int, classes: int = 4, seed: int = 0, count: int = COUNT) -> tuple[np.ndarray, np.ndarray]:
    """Return labels and probabilities in steps of 1/8, so that ties of every kind are common."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, count)
    common = random.normal(size=(count, classes))
    stack = np.stack([common + random.normal(size=(count, classes)) for _ in range(members)])
    stack[:, np.arange(count), labels] += 1.5
    exact = np.exp(stack) / np.exp(stack).sum(2, keepdims=True)
    eighths = np.floor(exact * 8)
    eighths[..., -1] += 8 - eighths.sum(
        2
    )  # to the last class, so that the first of tied classes is not always the largest
    return labels, (eighths / 8).astype(np.float32)


def compute_report(source: Ledger) -> DiversityReport:
    result = compute_regression_diversity(source) if source.meta.task == "regression" else compute_diversity(source)
    assert result is not None
    json.dumps(result, allow_nan=False)
    return result


@pytest.mark.usefixtures("small_blocks")
def test_votes_match_numpy(tmp_path: Path) -> None:
    labels, stack = votes(5)
    result = compute_report(ledger(tmp_path, "multiclass", labels, stack))
    predicted = stack.argmax(2)
    wrong = predicted != labels
    assert result["errors"] == pytest.approx(wrong.mean(1).tolist())
    assert result["mean_error"] == pytest.approx(wrong.mean())
    np.testing.assert_allclose(np.array(result["error_correlation"]["matrix"], float), np.corrcoef(wrong), atol=1e-12)
    differ = (predicted[:, None] != predicted[None]).mean(2)
    np.testing.assert_allclose(np.array(result["disagreement"]["matrix"], float), differ, atol=1e-12)
    upper = np.triu_indices(5, 1)
    assert result["error_correlation"]["mean"] == pytest.approx(np.corrcoef(wrong)[upper].mean())
    assert result["disagreement"]["mean"] == pytest.approx(differ[upper].mean())
    assert result["wrong_together"] == np.bincount(wrong.sum(0), minlength=6).tolist()
    for point in result["curve"]:
        size = point["members"]
        scores = [
            (stack[list(subset)].astype(float).mean(0).astype(np.float32).argmax(1) == labels).mean()
            for subset in combinations(range(5), size)
        ]
        assert (point["value"], point["spread"]) == pytest.approx((np.mean(scores), np.std(scores)), abs=1e-12)
        assert (point["low"], point["high"]) == pytest.approx((min(scores), max(scores)), abs=1e-12)
        assert (point["subsets"], point["possible"]) == (comb(5, size), comb(5, size))
        assert point["independent"] == pytest.approx(1 - majority_error(float(wrong.mean()), size))
    assert result["error"] == 1 - result["curve"][-1]["value"]
    number = result["independent_members"]
    assert number is not None
    below, above = (majority_error(result["mean_error"], odd) for odd in (2 * int((number - 1) / 2) + 1, number + 2))
    assert above < result["error"] <= below


def test_the_report_is_part_of_the_scores_and_agrees_with_their_rows(tmp_path: Path) -> None:
    labels, stack = votes(4, count=90)
    scores = score_run(ledger(tmp_path, "multiclass", labels, stack))
    rows, result = {row["name"]: row["value"] for row in scores["rows"]}, scores["diversity"]
    assert result is not None and result["hard_error"] is not None
    assert 1 - result["error"] == pytest.approx(rows["soft"], abs=1e-15)
    assert 1 - result["hard_error"] == pytest.approx(rows["hard"], abs=1e-15)
    assert [1 - error for error in result["errors"]] == pytest.approx(
        [rows[f"member/m{number}"] for number in range(4)]
    )
    assert json.loads(to_json(scores))["diversity"] == result


def test_improbable_classes_change_nothing(tmp_path: Path) -> None:
    """Of 300 classes only a few are compared; the reference compares all of them."""
    random = np.random.default_rng(3)
    labels = random.integers(0, 300, 400)
    stack = np.stack([random.dirichlet(np.full(300, 0.02), 400) for _ in range(4)])
    stack[:, np.arange(400), labels] += random.random((4, 400)) * 0.6
    stack = (stack / stack.sum(2, keepdims=True)).astype(np.float32)
    result = compute_report(ledger(tmp_path, "multiclass", labels, stack))
    for point in result["curve"]:
        means = [stack[list(subset)].mean(0, dtype=float) for subset in combinations(range(4), point["members"])]
        assert point["value"] == pytest.approx(np.mean([(mean.argmax(1) == labels).mean() for mean in means]))


def test_independent_members_are_recognised(tmp_path: Path) -> None:
    """Three members with error rate 0.1; all eight patterns of errors occur as often as expected by chance."""
    count = 1000
    patterns = [(a, b, c) for a in (0, 1) for b in (0, 1) for c in (0, 1)]
    wrong = np.concatenate([np.tile(p, (round(count * 0.1 ** sum(p) * 0.9 ** (3 - sum(p))), 1)) for p in patterns]).T
    labels = np.zeros(wrong.shape[1], np.int64)
    stack = np.stack([1.0 - wrong, wrong], axis=2) * 0.98 + 0.01
    result = compute_report(ledger(tmp_path, "multiclass", labels, stack))
    assert result["error_correlation"]["mean"] == pytest.approx(0, abs=1e-12)
    assert result["error"] == pytest.approx(majority_error(0.1, 3)) == pytest.approx(0.028)
    assert result["independent_error_unequal"] == pytest.approx(0.028)
    assert result["independent_members"] == pytest.approx(3.0, rel=1e-6)
    assert "worth 3.0 independent members" in rendered(result, 80)


@pytest.mark.parametrize(
    ("wrong", "members", "text"),
    [
        ([[0, 0, 0, 0], [1, 0, 0, 0], [1, 1, 0, 0]], None, "all correct"),
        ([[1, 1, 1, 0], [1, 1, 0, 1], [1, 1, 1, 0]], None, "50 % or more"),
        ([[1, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0]], 1.0, "worth 1.0 independent members"),
        ([[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]], None, "no error is left"),
    ],
)
def test_the_equivalent_is_described_also_without_a_number(
    tmp_path: Path, wrong: list[list[int]], members: float | None, text: str
) -> None:
    share = np.array(wrong, float) * 0.5 + 0.2  # a wrong member is less confident than a correct one
    result = compute_report(ledger(tmp_path, "multiclass", np.zeros(4, np.int64), np.stack([1 - share, share], axis=2)))
    if text == "all correct":
        result["error"], result["independent_members"] = 0.9, None
        assert describe_independent_equivalent(result) == "worth less than one member"
        assert result["error_correlation"]["matrix"][0][1] is None  # the first is always correct
        return
    number = result["independent_members"]
    assert (number is None) if members is None else number == pytest.approx(members, abs=1e-6)
    assert text in describe_independent_equivalent(result)


@pytest.mark.usefixtures("small_blocks")
def test_each_label_is_a_decision(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    labels = (random.random((COUNT, 3)) < 0.3).astype(np.float32)
    stack = np.clip(labels * 0.5 + 0.25 + random.normal(0, 0.35, (4, COUNT, 3)), 0, 1).astype(np.float32)
    result = compute_report(ledger(tmp_path, "multilabel", labels, stack))
    wrong = ((stack > 0.5) != (labels > 0)).reshape(4, -1)
    assert result["n"] == 3 * COUNT and result["hard_error"] is None
    assert result["errors"] == pytest.approx(wrong.mean(1).tolist())
    np.testing.assert_allclose(np.array(result["error_correlation"]["matrix"], float), np.corrcoef(wrong), atol=1e-12)
    for point in result["curve"]:
        scores = [
            ((stack[list(subset)].mean(0, dtype=float).astype(np.float32) > 0.5) == (labels > 0)).mean()
            for subset in combinations(range(4), point["members"])
        ]
        assert point["value"] == pytest.approx(np.mean(scores), abs=1e-12)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("targets", [1, 2])
def test_regression_gains_the_ambiguity(tmp_path: Path, targets: int) -> None:
    random = np.random.default_rng(2)
    labels = random.normal(5, 2, (COUNT, targets)).astype(np.float32) * ((1, 1000)[:targets])
    labels = labels.astype(np.float32)
    scale = labels.std(axis=0, dtype=float) if targets > 1 else np.ones(1)
    noise = random.normal(0, 0.5, (1, COUNT, targets)) + random.normal(0.1, 0.6, (4, COUNT, targets))
    stack = (labels + noise * (labels.std(axis=0) if targets > 1 else 1)).astype(np.float32)
    result = compute_report(ledger(tmp_path, "regression", labels, stack))
    errors = (stack.astype(float) - labels) / scale
    assert result["errors"] == pytest.approx((errors**2).mean((1, 2)).tolist())
    ambiguity = ((errors - errors.mean(0)) ** 2).mean()  # Krogh and Vedelsby: an identity
    assert result["mean_error"] - ambiguity == pytest.approx(result["error"])
    assert result["error"] == pytest.approx((errors.mean(0) ** 2).mean())
    assert result["independent_members"] == pytest.approx(result["mean_error"] / result["error"])
    assert result["independent_error"] == pytest.approx(result["mean_error"] / 4)
    centred = (errors - errors.mean(1, keepdims=True)).reshape(4, -1)
    np.testing.assert_allclose(np.array(result["error_correlation"]["matrix"], float), np.corrcoef(centred), atol=1e-4)
    distance = sqrt(((errors[0] - errors[1]) ** 2).mean())
    assert result["disagreement"]["matrix"][0][1] == pytest.approx(distance, rel=1e-6)
    for point in result["curve"]:
        squares = [(errors[list(s)].mean(0) ** 2).mean() for s in combinations(range(4), point["members"])]
        assert point["value"] == pytest.approx(sqrt(np.mean(squares)))
        assert point["low"] == pytest.approx(sqrt(min(squares)))
    assert max(map(len, rendered(result, 80).splitlines())) <= 80


def test_one_member_has_no_diversity(tmp_path: Path) -> None:
    labels, stack = votes(1, count=20)
    assert score_run(ledger(tmp_path, "multiclass", labels, stack))["diversity"] is None


def test_subsets_are_all_or_a_fixed_selection() -> None:
    assert choose_subsets(4, 2, 6) == list(combinations(range(4), 2))
    drawn = choose_subsets(20, 10, 200)
    assert drawn == choose_subsets(20, 10, 200) and len(set(drawn)) == 200
    assert all(len(set(one)) == 10 and list(one) == sorted(one) for one in drawn)
    often = np.bincount(np.array(drawn).ravel(), minlength=20)
    assert np.abs(often - 100).max() < 4 * sqrt(200 * 0.25)  # each member is in half of the subsets
    assert len(set(choose_subsets(5, 2, 9))) == 9


def test_large_ledgers_use_fewer_subsets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels, stack = votes(7, count=50)
    monkeypatch.setattr("choral.ensembles.diversity._MAX_WORK", 1)
    curve = compute_report(ledger(tmp_path, "multiclass", labels, stack))["curve"]
    assert [point["subsets"] for point in curve] == [min(MIN_SUBSETS, comb(7, size)) for size in range(1, 8)]
    assert [point["possible"] for point in curve] == [comb(7, size) for size in range(1, 8)]


def rendered(result: DiversityReport, width: int) -> str:
    output = io.StringIO()
    Console(file=output, width=width).print(render_diversity(result))
    return output.getvalue()


LONG = "tf_efficientnet_lite0.in1k-{}-[seed]-<fold> & more"


@pytest.mark.parametrize("members", [2, 3, 8, 9, 20])
def test_tables_fit_80_columns_and_name_the_extremes(tmp_path: Path, members: int) -> None:
    labels, stack = votes(members, count=80)
    names = tuple(LONG.format(number) for number in range(members))
    result = compute_report(ledger(tmp_path, "multiclass", labels, stack, names))
    printed = rendered(result, 80)
    assert max(map(len, printed.splitlines())) <= 80
    joined = "".join(printed.split())
    matrix: Any = np.array(result["error_correlation"]["matrix"], float)
    first, second = divmod(int(np.where(np.eye(members, dtype=bool), 2.0, matrix).argmin()), members)
    assert members == 2 or "".join(f"({names[first]} and {names[second]})".split()) in joined
    assert ("above the diagonal" in printed) == (2 < members <= 8)
    curve = [line.split() for line in printed.partition("soft vote %")[2].splitlines()]
    sizes = [int(line[0]) for line in curve if line and line[0].isdigit()]
    assert sizes[: len(select_curve_sizes(members))] == select_curve_sizes(members)
    assert (
        select_curve_sizes(members)[0] == 1
        and select_curve_sizes(members)[-1] == members
        and len(select_curve_sizes(members)) <= 10
    )


@pytest.mark.parametrize("members", [2, 5, 12, 30])
def test_figure_holds_the_curve_and_all_correlations(tmp_path: Path, members: int) -> None:
    labels, stack = votes(members, count=60)
    names = tuple(LONG.format(number) for number in range(members))
    result = compute_report(ledger(tmp_path, "multiclass", labels, stack, names))
    figure = draw_diversity(result, "test <b> $x$")
    content = render_svg(figure)
    texts = svg_texts(content)
    assert f"test <b> $x$: {members} members, view identity" in texts
    assert sum(text.startswith("tf_efficientn…") and "<fold> & more  " in text for text in texts) == members
    assert misplaced_texts(content) == []
    curve, matrix = figure.axes[:2]
    assert curve.lines[0].get_xdata().tolist() == list(range(1, members + 1))
    assert curve.lines[0].get_ydata().tolist() == pytest.approx([100 * point["value"] for point in result["curve"]])
    cells = matrix.collections[0].get_array()
    expected: Any = np.array(result["error_correlation"]["matrix"], float)
    np.testing.assert_array_equal(np.ma.filled(cells, np.nan), np.where(np.eye(members, dtype=bool), np.nan, expected))
    numbers = [text for text in texts if re.fullmatch(r"0\.\d\d|-0\.\d\d|–", text)]  # noqa: RUF001
    assert len(numbers) == (members * (members - 1) if members < 15 else 0), "small cells have colours alone"
