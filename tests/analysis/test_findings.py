"""Samples, groups, summary, coverage and label errors of all tasks, from made-up ledgers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import fisher_exact

from choral.analysis.groups import _fisher_exact, compare_groups, quartile_masks
from choral.analysis.json_values import to_plain_json
from choral.analysis.label_errors import find_label_errors
from choral.analysis.samples import SliceColumn, build_sample_table
from choral.analysis.summary import compute_coverage, compute_reliability, compute_summary
from choral.config import Config
from choral.ensembles.worst_samples import find_worst_predictions
from choral.inference.ledger import Ledger
from choral.metrics.multiple_comparisons import holm
from choral.runs.run_dir import RunDir
from choral.scoring.predictor import Predictor, load_predictor
from made_runs import made_run, numbers, predictions, write_ledger

TASKS = ("multiclass", "multilabel", "regression")


def made(folder: Path, task: str, count: int = 240) -> tuple[RunDir, Config, Predictor]:
    if task == "multiclass":
        labels, columns = predictions(count)
    else:
        random = np.random.default_rng(3)
        own = random.normal(size=(count, 3)) if task == "regression" else random.random((count, 3)) < 0.4
        labels = own.astype(np.float32)
        columns = numbers(labels, task)
    run, config = made_run(folder, {"val": (labels, columns)}, task=task)
    return run, config, load_predictor(run, config, "val")


def half(count: int) -> dict[str, SliceColumn]:
    return {"half": SliceColumn(("one", "two"), (np.arange(count) % 2).astype(np.int16))}


@pytest.mark.parametrize("task", TASKS)
def test_sample_table_holds_predictions_and_votes(task: str, tmp_path: Path) -> None:
    _, _, predictor = made(tmp_path / "run", task)
    samples = build_sample_table(predictor, half(240))
    assert samples.keys == predictor.ledger.keys
    assert np.array_equal(samples.predicted, predictor.decisions)
    view = "tta" if task == "multiclass" else "identity"
    for number, member in enumerate(predictor.ledger.members):
        own = predictor.ledger.predictions(member, view)
        said = own.argmax(axis=1) if task == "multiclass" else own > 0.5 if task == "multilabel" else own
        assert np.array_equal(samples.votes[:, number], said), member
    found = {figure.metric: figure.value for figure in compute_summary(predictor)}
    if task == "multiclass":
        assert found["accuracy"] == pytest.approx(samples.right.mean())
        assert np.array_equal(samples.top[:, 0], samples.predicted)
        assert (np.diff(samples.top_probability, axis=1) <= 0).all()
    if task != "regression":
        assert found["log_loss"] == pytest.approx(samples.loss.mean(), rel=1e-5)
        assert sum(one.n for one in compute_reliability(predictor)) == 240 * (1 if task == "multiclass" else 3)
    curve = compute_coverage(predictor, samples)
    assert curve is not None and curve.coverage[-1] == 1
    better = curve.value[5] < curve.value[-1] if task == "regression" else curve.value[5] >= curve.value[-1]
    assert better or task == "regression"  # members' spread says little of these made errors
    whole = samples.loss.mean() if task == "regression" else (samples.labels == samples.predicted).mean()
    assert curve.value[-1] == pytest.approx(whole, rel=1e-5)


def test_p_values_of_shares_are_those_of_fishers_exact_test() -> None:
    random = np.random.default_rng(0)
    for _ in range(60):
        one, other = ((random.random(random.integers(1, 80)) < random.random()).astype(float) for _ in range(2))
        table = [[one.sum(), len(one) - one.sum()], [other.sum(), len(other) - other.sum()]]
        assert _fisher_exact(one, other) == pytest.approx(fisher_exact(table).pvalue, rel=1e-9)


@pytest.mark.parametrize("task", TASKS)
def test_a_bad_slice_is_significant_and_others_are_not(task: str, tmp_path: Path) -> None:
    _, _, predictor = made(tmp_path / "run", task, 400)
    random = np.random.default_rng(5)
    codes = random.integers(0, 4, 400).astype(np.int16)
    said = predictor.predictions.copy()
    bad = codes == 2
    said[bad] = (
        np.roll(said[bad], 1, axis=1) if task != "regression" else said[bad] + random.normal(0, 3, (bad.sum(), 3))
    )
    worse = Predictor("soft", predictor.ledger, said.astype(np.float32), task != "regression")
    slicing = {"lamp": SliceColumn(tuple("abcd"), codes), **half(400)}
    groups = compare_groups(worse, build_sample_table(worse, slicing))
    marked = [(group.column, group.value) for own in groups.slices.values() for group in own if group.significant]
    assert ("lamp", "c") in marked and not any(column == "half" for column, _ in marked)
    assert groups.comparisons == 4 + 1 + (0 if task == "regression" else 3)
    assert str(groups.comparisons) in groups.note
    one, two = groups.slices["half"]
    assert one.p == pytest.approx(two.p) and one.p_adjusted == two.p_adjusted


def test_p_values_count_every_comparison_of_the_page(tmp_path: Path) -> None:
    _, _, predictor = made(tmp_path / "run", "multiclass")
    groups = compare_groups(predictor, build_sample_table(predictor, half(240)))
    single = [group.p for group in groups.classes] + [groups.slices["half"][0].p]
    expected = holm([p for p in single if p is not None])
    assert [group.p_adjusted for group in groups.classes] == pytest.approx(expected[:3])
    assert groups.slices["half"][1].p_adjusted == pytest.approx(expected[3])


def test_groups_by_chance_are_rarely_significant(tmp_path: Path) -> None:
    _, _, predictor = made(tmp_path / "run", "multilabel", 200)
    alarms = 0
    for seed in range(60):
        codes = np.random.default_rng(seed).choice(4, 200, p=[0.9, 0.05, 0.03, 0.02]).astype(np.int16)
        groups = compare_groups(predictor, build_sample_table(predictor, {"lot": SliceColumn(tuple("abcd"), codes)}))
        alarms += any(group.significant for group in groups.slices["lot"])
    assert alarms <= 7  # 3 are expected; more than 7 in one of a hundred


def test_quartiles_leave_nothing_out_but_what_is_missing() -> None:
    values = np.array([np.nan, *np.arange(40.0)])
    masks = quartile_masks(values)
    assert [int(mask.sum()) for mask in masks.values()] == [10, 10, 10, 10]
    assert next(iter(masks)) == "0 to 9"
    assert not any(mask[0] for mask in masks.values())
    alike = np.array([np.nan, *np.repeat([1001.0, 1002, 1003, 1004], 10)])  # 1e+03 each
    assert list(quartile_masks(alike)) == ["1001 to 1001", "1002 to 1002", "1003 to 1003", "1004 to 1004"]
    assert sum(int(mask.sum()) for mask in quartile_masks(alike).values()) == 40


@pytest.mark.parametrize("task", TASKS)
def test_planted_label_errors_are_listed(task: str, tmp_path: Path) -> None:
    count = 400
    random = np.random.default_rng(7)
    planted = random.choice(count, 20, replace=False)
    if task == "multiclass":
        truth = random.integers(0, 3, count)
        said = np.full((count, 3), 0.08, np.float32)
        said[np.arange(count), truth] = 0.84
        said = random.dirichlet([1, 1, 1], count).astype(np.float32) * 0.3 + said * 0.7
        labels = truth.copy()
        labels[planted] = (labels[planted] + random.integers(1, 3, 20)) % 3
    elif task == "multilabel":
        truth = (random.random((count, 3)) < 0.4).astype(np.float32)
        said = np.clip(0.1 + 0.8 * truth + random.normal(0, 0.08, truth.shape), 0.01, 0.99).astype(np.float32)
        labels = truth.copy()
        flipped = planted, random.integers(0, 3, 20)
        labels[flipped] = 1 - labels[flipped]
    else:
        truth = random.normal(size=(count, 3)).astype(np.float32)
        said = (truth + random.normal(0, 0.2, truth.shape)).astype(np.float32)
        labels = truth.copy()
        labels[planted, 1] += 3
    run, config = made_run(tmp_path / "run", {"val": (labels, {("a", "identity"): said})}, task=task)
    found = find_label_errors(run, config, load_predictor(run, config, "val"))
    listed = {int(one.key.removeprefix("val")) for one in found.suspects}
    hits = len(listed & set(planted.tolist()))
    assert hits >= 0.8 * len(planted) and hits >= 0.6 * len(listed), (hits, len(listed), len(planted))
    assert found.sources[0].split == "val" and "checkpoint" in found.sources[0].note
    assert "ensemble.folds" in found.note  # the training split has no predictions out of sample
    assert [one.quality for one in found.suspects] == sorted(one.quality for one in found.suspects)


def test_labels_of_train_are_held_against_networks_that_have_not_seen_them(tmp_path: Path) -> None:
    labels, columns = predictions(300, ("net", "other"), views=("identity",))
    run, config = made_run(tmp_path / "run", {"val": (labels[:60], {k: v[:60] for k, v in columns.items()})})
    path = run.predictions / "held-out.parquet"
    write_ledger(path, labels, columns, keys=[f"t{number:04d}" for number in range(300)], evaluation="e-folds")
    predictor = load_predictor(run, config, "val")
    found = find_label_errors(run, config, predictor)
    assert [(one.split, one.source, one.n) for one in found.sources] == [
        ("train", "held-out", 300),
        ("val", "evaluation", 60),
    ]
    assert found.note == ""
    write_ledger(path, labels, columns, keys=[f"t{number:04d}" for number in range(300)], evaluation="older-folds")
    stale = find_label_errors(run, config, predictor)
    assert [one.split for one in stale.sources] == ["val"] and "other weights" in stale.note


def test_a_class_without_samples_is_no_obstacle(tmp_path: Path) -> None:
    labels, columns = predictions(200)
    run, config = made_run(tmp_path / "run", {"val": (np.where(labels == 2, 0, labels), columns)})
    predictor = load_predictor(run, config, "val")
    assert find_label_errors(run, config, predictor).sources[0].n == 200
    empty = compare_groups(predictor, build_sample_table(predictor, {})).classes[2]
    assert (empty.n, empty.score, empty.p) == (0, None, None)


@pytest.mark.parametrize("having", [(0, 0, 0), (1, 1, 1), (0.4, 0, 1)])
def test_labels_that_none_or_all_have_are_no_obstacle(having: tuple[float, float, float], tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    labels = (random.random((200, 3)) < having).astype(np.float32)
    said = np.clip(0.1 + 0.8 * labels + random.normal(0, 0.08, labels.shape), 0.01, 0.99).astype(np.float32)
    flipped = random.choice(200, 8, replace=False)
    labels[flipped, 0] = np.where(having[0] == 0.4, 1 - labels[flipped, 0], labels[flipped, 0])
    run, config = made_run(tmp_path / "run", {"val": (labels, {("a", "identity"): said})}, task="multilabel")
    found = find_label_errors(run, config, load_predictor(run, config, "val"))
    if having[0] == 0.4:
        keys = {f"val{row:05d}" for row in flipped}
        assert len(keys & {one.key for one in found.suspects}) >= 4
        assert all(one.label != one.suggested and "z" in one.suggested for one in found.suspects)
        assert found.sources[0].note.endswith("Labels that all samples have, or none, are never suspected: y, z.")
    else:
        assert not found.suspects and "No label is present in some samples" in found.sources[0].note


def test_a_class_with_one_sample_is_named_once(tmp_path: Path) -> None:
    columns = predictions(60)[1]
    run, config = made_run(tmp_path / "run", {"val": (np.arange(60) == 7, columns)})
    found = find_label_errors(run, config, load_predictor(run, config, "val"))  # and warns of nothing
    assert "a class with one sample is never suspected" in found.sources[0].note
    assert all(one.label == "x" for one in found.suspects)


def test_a_target_that_is_the_same_of_all_does_not_drown_the_others(tmp_path: Path) -> None:
    labels = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    labels[:, 1] = 4.3
    run, config = made_run(tmp_path / "run", {"val": (labels, numbers(labels, "regression"))}, task="regression")
    predictor = load_predictor(run, config, "val")
    samples = build_sample_table(predictor, {})
    errors = np.abs(predictor.predictions - labels) / [labels[:, 0].std(), 1, labels[:, 2].std()]
    np.testing.assert_allclose(samples.loss, errors.mean(axis=1), rtol=1e-4)
    np.testing.assert_allclose(
        [one.loss for one in find_worst_predictions(predictor.ledger, 3)], np.sort(samples.loss)[::-1][:3], rtol=1e-4
    )


def test_what_is_not_finite_is_null() -> None:
    assert to_plain_json({"a": np.array([1.0, np.nan]), "b": float("inf"), "c": (np.int32(3),)}) == {
        "a": [1.0, None],
        "b": None,
        "c": [3],
    }


def test_a_ledger_keeps_its_order(tmp_path: Path) -> None:
    run, _, predictor = made(tmp_path / "run", "multiclass")
    ledger = Ledger.open(run.predictions / "val.parquet")
    assert build_sample_table(predictor, {}).labels.tolist() == ledger.labels.tolist()
