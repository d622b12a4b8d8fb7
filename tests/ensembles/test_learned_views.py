"""Learned test-time augmentation: view weights learned on validation, their gain on test, and what is rejected."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from choral.cli import main
from choral.ensembles.fitting_data import FittingData
from choral.ensembles.learned_views import learn_views
from choral.ensembles.member_predictions import MemberPredictions, ViewPredictions
from choral.ensembles.member_weights import greedy_log_loss
from choral.ensembles.rule_fitting import compute_statistics
from choral.ensembles.rules import average_views, soft_vote
from choral.inference.ledger import Ledger
from choral.metrics.intervals import paired_bootstrap
from choral.runs.run_dir import RunDir
from choral.scoring.predictor import list_predictors, load_predictor
from made_runs import FOLDED, FOLDS, MEMBERS, Columns, made_run, numbers, write_ledger

VIEWS = ("identity", "hflip", "scale[0.9]", "rot90*contrast[0.8]")
NOISE = {"identity": 0.6, "hflip": 0.6, "scale[0.9]": 0.9, "rot90*contrast[0.8]": 4.0}


def simulate(count: int, seed: int, members: tuple[str, ...] = MEMBERS) -> tuple[NDArray[np.int64], Columns]:
    """Return labels and predictions under views, of which the last is useless, with their mean as tta."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, count)
    columns: Columns = {}
    for member in members:
        shared = rng.normal(size=(count, 3))
        for view in VIEWS:
            logits = shared + NOISE[view] * rng.normal(size=(count, 3))
            logits[np.arange(count), labels] += 1.5
            powers = np.exp(1.5 * logits)
            columns[member, view] = (powers / powers.sum(1, keepdims=True)).astype(np.float32)
        columns[member, "tta"] = soft_vote(np.stack([columns[member, view] for view in VIEWS]))
    return labels, columns


VAL, TEST = simulate(150, seed=1), simulate(260, seed=2)


def write_run(folder: Path, **ledgers: tuple[NDArray[Any], Columns]) -> RunDir:
    """Return a run whose ledgers keep their views; "tta" is the mean over all of them."""
    run, _ = made_run(folder, {})
    for split, (labels, columns) in ledgers.items():
        write_ledger(run.predictions / f"{split}.parquet", labels, columns, tta_views=VIEWS)
    return run


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return write_run(tmp_path / "run", val=VAL, test=TEST)


def choral_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    capsys.readouterr()
    assert main([*arguments, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def mean_of(columns: Columns, view: str, members: tuple[str, ...] = MEMBERS) -> NDArray[np.float64]:
    return np.mean([columns[member, view].astype(float) for member in members], axis=0)


def expected_weights(members: tuple[str, ...] = MEMBERS) -> NDArray[np.float64]:
    labels, columns = VAL
    truths = np.stack([mean_of(columns, view, members)[np.arange(len(labels)), labels] for view in VIEWS], axis=1)
    return greedy_log_loss(truths, 100).values


def weighted_views(
    weights: NDArray[np.float64], columns: Columns, members: tuple[str, ...] = MEMBERS
) -> NDArray[np.float64]:
    return sum(weight * mean_of(columns, view, members) for view, weight in zip(VIEWS, weights, strict=True))


def hits(predictions: NDArray[np.floating]) -> NDArray[np.float64]:
    return (predictions.argmax(1) == TEST[0]).astype(float)


def losses(predictions: NDArray[np.floating]) -> NDArray[np.float64]:
    return -np.log(predictions.astype(np.float32)[np.arange(len(predictions)), TEST[0]].astype(float))


def test_view_weights_are_learned_on_validation_and_scored_on_test(
    run: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = expected_weights()
    assert weights[3] < 0.05 and (weights[:3] > 0).sum() > 1  # the useless view
    found = choral_json(
        capsys, "combine", str(run.path), "--rule", "soft", "--views", "learned", "--temperature", "none"
    )
    assert found["view_weights"] == pytest.approx(dict(zip(VIEWS, weights.tolist(), strict=True)))
    assert found["views"] == [view for view, weight in zip(VIEWS, weights, strict=True) if weight]
    expected = weighted_views(weights, TEST[1])
    kept = Ledger.open(run.path / "combined" / "soft" / "test.parquet")
    assert (kept.views, kept.meta.tta_views) == (("learned",), tuple(found["views"]))
    np.testing.assert_allclose(kept.predictions("soft", "learned"), expected, atol=1e-6)
    baselines = {
        "identity": mean_of(TEST[1], "identity"),
        "uniform": np.mean([mean_of(TEST[1], view) for view in VIEWS], 0),
    }
    gains = {(gain["to"], gain["metric"]): gain for gain in found["view_gains"]}
    assert set(gains) == {(to, metric) for to in baselines for metric in ("accuracy", "log_loss")}
    for to, other in baselines.items():
        for metric, of in (("accuracy", hits), ("log_loss", losses)):
            by_bootstrap = paired_bootstrap(of(expected), of(other))
            gain = gains[to, metric]
            assert (gain["value"], gain["low"], gain["high"]) == pytest.approx(
                (by_bootstrap.value, by_bootstrap.low, by_bootstrap.high), abs=1e-6
            )
    assert gains["uniform", "log_loss"]["high"] < 0  # significant: the mean over views includes the useless one
    learned = found["learned_views"]
    assert (learned["on"], learned["samples"], learned["by"], learned["rule"]) == ("val", 150, "log_loss", "greedy")
    assert learned["losses"]["learned"] <= min(learned["losses"].values())


def test_the_score_table_has_a_row_and_a_predictor_of_that_name(
    run: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = choral_json(capsys, "score", str(run.path))
    rows = {row["name"]: row for row in scores["rows"]}
    assert list(rows)[-1] == "soft+learned" and "member/a+learned" not in rows
    expected = weighted_views(expected_weights(), TEST[1])
    assert rows["soft+learned"]["value"] == pytest.approx(hits(expected).mean())
    assert rows["soft+learned"]["log_loss"]["value"] == pytest.approx(losses(expected).mean(), rel=1e-5)
    kept = choral_json(
        capsys, "combine", str(run.path), "--rule", "soft", "--views", "learned", "--temperature", "none"
    )
    learned = scores["learned_views"]
    assert (learned["name"], learned["weights"], learned["gains"]) == (
        "soft+learned",
        kept["view_weights"],
        kept["view_gains"],
    )
    assert "soft+learned" in list_predictors(run, run.config(), "test")
    np.testing.assert_allclose(
        load_predictor(run, run.config(), "test", "soft+learned").predictions, expected, atol=1e-6
    )
    assert main(["score", str(run.path)]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert (
        f"soft+learned: {(expected_weights() > 0).sum()} of 4 views: " in text
        and "learned on val (150 samples) by greedy selection; log loss" in text
    )
    assert (
        "difference to identity: accuracy % " in text and "difference to the mean over these views: accuracy % " in text
    )


def test_the_scored_split_does_not_affect_the_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels, columns = simulate(260, seed=77)
    found = [
        choral_json(
            capsys,
            "combine",
            str(write_run(tmp_path / name, val=VAL, test=test).path),
            "--rule",
            "soft",
            "--views",
            "learned",
        )
        for name, test in (("one", TEST), ("two", (labels, columns)))
    ]
    assert found[0]["view_weights"] == found[1]["view_weights"] and found[0]["scores"] != found[1]["scores"]


def test_learned_weights_are_reused_until_validation_changes(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    command = ("combine", str(run.path), "--rule", "hard", "--views", "learned")
    first = choral_json(capsys, *command)
    assert choral_json(capsys, *command) == {**first, "again": True}
    write_ledger(run.predictions / "val.parquet", *simulate(120, seed=9), tta_views=VIEWS)
    changed = choral_json(capsys, *command)
    assert not changed["again"] and changed["view_weights"] != first["view_weights"]
    assert main(list(command)) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert f"learned weights of {len(changed['views'])} of 4 views" in text and "learned views: " in text


def test_members_and_external_predictions_use_the_learned_views(
    run: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    members = ("a", "b")
    chosen = ("--rule", "weighted", "--weights", "a=0.25,b=0.75", "--members", "b,a", "--temperature", "none")
    found = choral_json(capsys, "combine", str(run.path), *chosen, "--views", "learned")
    weights = expected_weights(members)
    expected = 0.25 * weighted_views(weights, TEST[1], ("a",)) + 0.75 * weighted_views(weights, TEST[1], ("b",))
    kept = Ledger.open(run.path / "combined" / "weighted" / "test.parquet")
    np.testing.assert_allclose(kept.predictions("weighted", "learned"), expected, atol=1e-6)
    other = write_run(run.path.parent / "other", test=(TEST[0], simulate(260, 5, ("d",))[1]))
    test = other.predictions / "test.parquet"
    joined = choral_json(
        capsys,
        "combine",
        str(run.path),
        "--rule",
        "soft",
        "--views",
        "learned",
        "--with",
        f"d={test}",
        "--name",
        "joined",
    )
    assert joined["members"] == ["a", "b", "c", "d"]
    external = weighted_views(expected_weights(), simulate(260, 5, ("d",))[1], ("d",))
    mean = (3 * weighted_views(expected_weights(), TEST[1]) + external) / 4
    kept = Ledger.open(run.path / "combined" / "joined" / "test.parquet")
    np.testing.assert_allclose(kept.predictions("joined", "learned"), mean, atol=1e-6)
    assert found["view_weights"] != joined["view_weights"]


def test_a_stack_is_fitted_under_the_learned_views(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, _ = made_run(tmp_path / "folded", {}, FOLDS)
    for split, (labels, columns) in {
        "val": simulate(120, 1, FOLDED),
        "test": simulate(130, 2, FOLDED),
        "held-out": simulate(300, 3, ("net", "other")),
    }.items():
        write_ledger(run.predictions / f"{split}.parquet", labels, columns, tta_views=VIEWS)
    command = ("combine", str(run.path), "--rule", "stack")
    assert choral_json(capsys, *command, "--views", "learned")["fit"] != choral_json(capsys, *command)["fit"]


@pytest.mark.parametrize("task", ["multilabel", "regression"])
def test_multilabel_and_regression(tmp_path: Path, capsys: pytest.CaptureFixture[str], task: str) -> None:
    rng = np.random.default_rng(4)

    def columns_of(labels: NDArray[np.float32], seed: int) -> Columns:
        found: Columns = {}
        for number, view in enumerate(("identity", "hflip", "rot180")):
            noisy = labels if number < 2 else rng.permutation(labels)
            found |= {
                (member, view): values for (member, _), values in numbers(noisy, task, seed=seed + number).items()
            }
        return found

    run, _ = made_run(tmp_path / "run", {}, [f"task={task}", "ensemble.members=[{name: a}, {name: b}, {name: c}]"])
    for split, count in (("val", 90), ("test", 140)):
        labels = (rng.random((count, 2)) < 0.4 if task == "multilabel" else rng.normal(size=(count, 2))).astype("f4")
        write_ledger(run.predictions / f"{split}.parquet", labels, columns_of(labels, count), ("p", "q"), task)
    found = choral_json(
        capsys, "combine", str(run.path), "--rule", "mean", "--views", "learned", "--temperature", "none"
    )
    assert found["view_weights"]["rot180"] < 0.1
    metrics = {"multilabel": {"mean_ap", "f1", "log_loss"}, "regression": {"rmse", "mae", "r2"}}[task]
    assert {gain["metric"] for gain in found["view_gains"]} == metrics
    assert {gain["to"] for gain in found["view_gains"]} == {"identity", "uniform"}
    best = next(gain for gain in found["view_gains"] if (gain["to"], gain["metric"]) == ("uniform", min(metrics)))
    assert best["value"] > 0.02 if task == "multilabel" else best["value"] < -0.02
    name = "mean+learned" if task == "regression" else "soft+learned"
    rows = choral_json(capsys, "score", str(run.path))["rows"]
    assert sum(row["name"] == name for row in rows) == (6 if task == "regression" else 3)


def without(ledger: tuple[NDArray[Any], Columns], *views: str) -> tuple[NDArray[Any], Columns]:
    return ledger[0], {key: values for key, values in ledger[1].items() if key[1] not in views}


@pytest.mark.parametrize(
    ("ledgers", "options", "message"),
    [
        (
            {"test": without(TEST, *VIEWS[1:]), "val": VAL},
            (),
            "keeps 1 single view, too few to choose from.*keep_views=true",
        ),
        ({"test": TEST}, (), "nothing to learn them on: 'val' is not evaluated"),
        ({"val": VAL}, ("--split", "val"), "nothing to learn them on: rules are fitted on 'val'"),
        ({"test": TEST, "val": without(VAL, "hflip")}, (), "val.parquet does not keep hflip: evaluate it"),
    ],
    ids=["one-view", "no-validation", "validation-scored", "validation-without"],
)
def test_unlearnable_views_are_rejected_and_have_no_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], ledgers: dict[str, Any], options: tuple[str, ...], message: str
) -> None:
    run = write_run(tmp_path / "run", **ledgers)
    assert main(["combine", str(run.path), "--rule", "soft", "--views", "learned", *options]) == 2
    assert re.search(message, " ".join(capsys.readouterr().err.split()))
    scores = choral_json(capsys, "score", str(run.path), *options)
    assert scores["learned_views"] is None
    assert not any("learned" in row["name"] for row in scores["rows"])


def test_learned_cannot_be_combined_with_views(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["combine", str(run.path), "--rule", "soft", "--views", "learned,hflip"]) == 2
    assert "learned chooses among all kept views; give it alone" in capsys.readouterr().err


def test_views_can_be_spelled_in_other_ways(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    found = choral_json(
        capsys, "combine", str(run.path), "--rule", "soft", "--views", "contrast[0.80]*rot90,scales[1,0.9]"
    )
    assert found["views"] == ["rot90*contrast[0.8]", "identity", "scale[0.9]"] and found["view_weights"] == {}


def test_view_predictions_and_the_mean_over_views_by_hand(run: RunDir) -> None:
    ledger = Ledger.open(run.predictions / "val.parquet")
    ((labels, stack),) = ViewPredictions(ledger, ("a", "c"), VIEWS).blocks()
    expected = [mean_of(VAL[1], view, ("a", "c")) for view in VIEWS]
    np.testing.assert_allclose(stack, expected, atol=1e-6)
    assert np.array_equal(labels, VAL[0])
    weights = (0.5, 0.5, 0.0, 0.0)
    ((_, averaged),) = MemberPredictions(ledger, ("a", "c"), VIEWS, view_weights=weights).blocks()
    parts = [(VAL[1][member, "identity"] + VAL[1][member, "hflip"]) / 2 for member in ("a", "c")]
    np.testing.assert_allclose(averaged, parts, atol=1e-6)
    np.testing.assert_allclose(average_views(iter(stack)), stack.mean(0), atol=1e-6)
    learned = learn_views(ledger, ("a", "c"), FittingData(validation=ledger))
    probabilities = compute_statistics(ViewPredictions(ledger, ("a", "c"), VIEWS)).true_probabilities
    assert learned.losses["learned"] == pytest.approx(
        -np.log(probabilities @ expected_weights(("a", "c"))).mean(), rel=1e-6
    )
