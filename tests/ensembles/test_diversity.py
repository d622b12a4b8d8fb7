"""What an ensemble gains and why: plain NumPy says the same, of every task, and it can be read with two members or twenty."""

from __future__ import annotations

import io
import json
import xml.etree.ElementTree as ElementTree
from itertools import combinations
from math import comb, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from choral.ensembles.diversity import FEWEST, diversity_of
from choral.ensembles.diversity_figure import draw_diversity
from choral.ensembles.diversity_rows import Diversity
from choral.ensembles.diversity_table import render_diversity, shown_sizes, worth
from choral.ensembles.regression_diversity import number_diversity
from choral.ensembles.score_run import score_run, to_json
from choral.ensembles.subsets import subsets_of
from choral.inference import ledger as ledger_module
from choral.inference.ledger import Ledger, LedgerMeta, ledger_table, merge_parts, write_part
from choral.metrics.independent_members import majority_error

COUNT = 700


def ledger(folder: Path, task: str, labels: np.ndarray, stack: np.ndarray, names: tuple[str, ...] = ()) -> Ledger:
    names = names or tuple(f"m{number}" for number in range(len(stack)))
    classes = tuple(f"c{number}" for number in range(stack.shape[2]))
    meta = LedgerMeta(classes, names, ("identity",), "test", "d", "e", (), task)
    keys = [f"k{number:05d}" for number in range(len(labels))]
    columns = {(name, "identity"): values.astype(np.float32) for name, values in zip(names, stack, strict=True)}
    write_part(folder / "parts", 0, 1, ledger_table(meta, keys, labels, columns))
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
    eighths[..., -1] += 8 - eighths.sum(2)  # the last class, so that the first of equals is not always the largest
    return labels, (eighths / 8).astype(np.float32)


def found(source: Ledger) -> Diversity:
    result = number_diversity(source) if source.meta.task == "regression" else diversity_of(source)
    assert result is not None
    json.dumps(result, allow_nan=False)
    return result


@pytest.mark.usefixtures("small_blocks")
def test_votes_are_what_plain_numpy_says(tmp_path: Path) -> None:
    labels, stack = votes(5)
    result = found(ledger(tmp_path, "multiclass", labels, stack))
    decided = stack.argmax(2)
    wrong = decided != labels
    assert result["errors"] == pytest.approx(wrong.mean(1).tolist())
    assert result["mean_error"] == pytest.approx(wrong.mean())
    np.testing.assert_allclose(np.array(result["error_correlation"]["matrix"], float), np.corrcoef(wrong), atol=1e-12)
    differ = (decided[:, None] != decided[None]).mean(2)
    np.testing.assert_allclose(np.array(result["disagreement"]["matrix"], float), differ, atol=1e-12)
    upper = np.triu_indices(5, 1)
    assert result["error_correlation"]["mean"] == pytest.approx(np.corrcoef(wrong)[upper].mean())
    assert result["disagreement"]["mean"] == pytest.approx(differ[upper].mean())
    assert result["wrong_together"] == np.bincount(wrong.sum(0), minlength=6).tolist()
    for step in result["curve"]:
        size = step["members"]
        scores = [
            (stack[list(subset)].astype(float).mean(0).astype(np.float32).argmax(1) == labels).mean()
            for subset in combinations(range(5), size)
        ]
        assert (step["value"], step["spread"]) == pytest.approx((np.mean(scores), np.std(scores)), abs=1e-12)
        assert (step["low"], step["high"]) == pytest.approx((min(scores), max(scores)), abs=1e-12)
        assert (step["subsets"], step["possible"]) == (comb(5, size), comb(5, size))
        assert step["independent"] == pytest.approx(1 - majority_error(float(wrong.mean()), size))
    assert result["error"] == 1 - result["curve"][-1]["value"]
    number = result["independent_members"]
    assert number is not None
    below, above = (majority_error(result["mean_error"], odd) for odd in (2 * int((number - 1) / 2) + 1, number + 2))
    assert above < result["error"] <= below


def test_the_report_stands_in_the_scores_and_agrees_with_their_rows(tmp_path: Path) -> None:
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


def test_classes_that_nobody_believes_in_change_nothing(tmp_path: Path) -> None:
    """Of a thousand classes few are looked at; all of them are, by the reference."""
    random = np.random.default_rng(3)
    labels = random.integers(0, 300, 400)
    stack = np.stack([random.dirichlet(np.full(300, 0.02), 400) for _ in range(4)])
    stack[:, np.arange(400), labels] += random.random((4, 400)) * 0.6
    stack = (stack / stack.sum(2, keepdims=True)).astype(np.float32)
    result = found(ledger(tmp_path, "multiclass", labels, stack))
    for step in result["curve"]:
        means = [stack[list(subset)].mean(0, dtype=float) for subset in combinations(range(4), step["members"])]
        assert step["value"] == pytest.approx(np.mean([(mean.argmax(1) == labels).mean() for mean in means]))


def test_independent_members_are_seen_to_be_independent(tmp_path: Path) -> None:
    """Three members of two classes, each wrong on a tenth, all eight patterns as often as chance has them."""
    count = 1000
    patterns = [(a, b, c) for a in (0, 1) for b in (0, 1) for c in (0, 1)]
    wrong = np.concatenate([np.tile(p, (round(count * 0.1 ** sum(p) * 0.9 ** (3 - sum(p))), 1)) for p in patterns]).T
    labels = np.zeros(wrong.shape[1], np.int64)
    stack = np.stack([1.0 - wrong, wrong], axis=2) * 0.98 + 0.01
    result = found(ledger(tmp_path, "multiclass", labels, stack))
    assert result["error_correlation"]["mean"] == pytest.approx(0, abs=1e-12)
    assert result["error"] == pytest.approx(majority_error(0.1, 3)) == pytest.approx(0.028)
    assert result["independent_error_unequal"] == pytest.approx(0.028)
    assert result["independent_members"] == pytest.approx(3.0, rel=1e-6)
    assert "worth 3.0 independent members" in shown(result, 80)


@pytest.mark.parametrize(
    ("wrong", "members", "words"),
    [
        ([[0, 0, 0, 0], [1, 0, 0, 0], [1, 1, 0, 0]], None, "all are right"),
        ([[1, 1, 1, 0], [1, 1, 0, 1], [1, 1, 1, 0]], None, "as often as not"),
        ([[1, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0]], 1.0, "worth 1.0 independent members"),
        ([[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]], None, "no error is left"),
    ],
)
def test_what_an_error_is_worth_is_said_also_where_there_is_no_number(
    tmp_path: Path, wrong: list[list[int]], members: float | None, words: str
) -> None:
    share = np.array(wrong, float) * 0.5 + 0.2  # a wrong member is less sure than a right one
    result = found(ledger(tmp_path, "multiclass", np.zeros(4, np.int64), np.stack([1 - share, share], axis=2)))
    if words == "all are right":
        result["error"], result["independent_members"] = 0.9, None
        assert worth(result) == "worth less than one member"
        assert result["error_correlation"]["matrix"][0][1] is None  # the first is always right
        return
    number = result["independent_members"]
    assert (number is None) if members is None else number == pytest.approx(members, abs=1e-6)
    assert words in worth(result)


@pytest.mark.usefixtures("small_blocks")
def test_labels_are_decisions_each(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    labels = (random.random((COUNT, 3)) < 0.3).astype(np.float32)
    stack = np.clip(labels * 0.5 + 0.25 + random.normal(0, 0.35, (4, COUNT, 3)), 0, 1).astype(np.float32)
    result = found(ledger(tmp_path, "multilabel", labels, stack))
    wrong = ((stack > 0.5) != (labels > 0)).reshape(4, -1)
    assert result["n"] == 3 * COUNT and result["hard_error"] is None
    assert result["errors"] == pytest.approx(wrong.mean(1).tolist())
    np.testing.assert_allclose(np.array(result["error_correlation"]["matrix"], float), np.corrcoef(wrong), atol=1e-12)
    for step in result["curve"]:
        scores = [
            ((stack[list(subset)].mean(0, dtype=float).astype(np.float32) > 0.5) == (labels > 0)).mean()
            for subset in combinations(range(4), step["members"])
        ]
        assert step["value"] == pytest.approx(np.mean(scores), abs=1e-12)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("targets", [1, 2])
def test_numbers_gain_what_members_differ_by(tmp_path: Path, targets: int) -> None:
    random = np.random.default_rng(2)
    labels = random.normal(5, 2, (COUNT, targets)).astype(np.float32) * ((1, 1000)[:targets])
    labels = labels.astype(np.float32)
    scale = labels.std(axis=0, dtype=float) if targets > 1 else np.ones(1)
    noise = random.normal(0, 0.5, (1, COUNT, targets)) + random.normal(0.1, 0.6, (4, COUNT, targets))
    stack = (labels + noise * (labels.std(axis=0) if targets > 1 else 1)).astype(np.float32)
    result = found(ledger(tmp_path, "regression", labels, stack))
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
    for step in result["curve"]:
        squares = [(errors[list(s)].mean(0) ** 2).mean() for s in combinations(range(4), step["members"])]
        assert step["value"] == pytest.approx(sqrt(np.mean(squares)))
        assert step["low"] == pytest.approx(sqrt(min(squares)))
    assert max(map(len, shown(result, 80).splitlines())) <= 80


def test_one_member_has_no_diversity(tmp_path: Path) -> None:
    labels, stack = votes(1, count=20)
    assert score_run(ledger(tmp_path, "multiclass", labels, stack))["diversity"] is None


def test_subsets_are_all_or_always_the_same_few() -> None:
    assert subsets_of(4, 2, 6) == list(combinations(range(4), 2))
    drawn = subsets_of(20, 10, 200)
    assert drawn == subsets_of(20, 10, 200) and len(set(drawn)) == 200
    assert all(len(set(one)) == 10 and list(one) == sorted(one) for one in drawn)
    often = np.bincount(np.array(drawn).ravel(), minlength=20)
    assert np.abs(often - 100).max() < 4 * sqrt(200 * 0.25)  # each member is in half of them
    assert len(set(subsets_of(5, 2, 9))) == 9


def test_large_ledgers_look_at_fewer_subsets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels, stack = votes(7, count=50)
    monkeypatch.setattr("choral.ensembles.diversity._WORK", 1)
    steps = found(ledger(tmp_path, "multiclass", labels, stack))["curve"]
    assert [step["subsets"] for step in steps] == [min(FEWEST, comb(7, size)) for size in range(1, 8)]
    assert [step["possible"] for step in steps] == [comb(7, size) for size in range(1, 8)]


def shown(result: Diversity, width: int) -> str:
    output = io.StringIO()
    Console(file=output, width=width).print(render_diversity(result))
    return output.getvalue()


LONG = "tf_efficientnet_lite0.in1k-{}-[seed]-<fold> & more"


@pytest.mark.parametrize("members", [2, 3, 8, 9, 20])
def test_tables_fit_and_name_those_who_matter(tmp_path: Path, members: int) -> None:
    labels, stack = votes(members, count=80)
    names = tuple(LONG.format(number) for number in range(members))
    result = found(ledger(tmp_path, "multiclass", labels, stack, names))
    printed = shown(result, 80)
    assert max(map(len, printed.splitlines())) <= 80
    words = "".join(printed.split())
    matrix: Any = np.array(result["error_correlation"]["matrix"], float)
    first, second = divmod(int(np.where(np.eye(members, dtype=bool), 2.0, matrix).argmin()), members)
    assert members == 2 or "".join(f"({names[first]} and {names[second]})".split()) in words
    assert ("above the diagonal" in printed) == (2 < members <= 8)
    curve = [line.split() for line in printed.partition("soft vote %")[2].splitlines()]
    sizes = [int(line[0]) for line in curve if line and line[0].isdigit()]
    assert sizes[: len(shown_sizes(members))] == shown_sizes(members)
    assert shown_sizes(members)[0] == 1 and shown_sizes(members)[-1] == members and len(shown_sizes(members)) <= 10


@pytest.mark.parametrize("members", [2, 12, 30])
def test_the_figure_is_whole_and_nothing_leaves_the_page(tmp_path: Path, members: int) -> None:
    labels, stack = votes(members, count=60)
    names = tuple(LONG.format(number) for number in range(members))
    result = found(ledger(tmp_path, "multiclass", labels, stack, names))
    root = ElementTree.fromstring(draw_diversity(result, "test <b>"))
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    texts = {"".join(element.itertext()): element.attrib for element in root.iter() if element.tag.endswith("text")}
    assert "test <b>: " + f"{members} members, view identity" in texts
    assert any(name.startswith("tf_efficient…") and name.endswith("<fold> & more") for name in texts)
    for words, place in texts.items():
        if words == "accuracy, %":  # upright
            continue
        x, long = float(place["x"]), 0.52 * float(place["font-size"]) * len(words)
        left = x - {"start": 0, "middle": long / 2, "end": long}[place["text-anchor"]]
        assert left >= 0 and left + long <= width and 0 < float(place["y"]) < height, words
    line = next(element for element in root.iter() if element.tag.endswith("polyline"))
    assert len(line.attrib["points"].split()) == members
    cells = [element for element in root.iter() if element.tag.endswith("rect")]
    assert len(cells) == members**2 + 1
