"""Calibrating a run, from ledgers to answer.json and the figure: what is fitted on which data, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from choral import cli
from choral.cli.workflow.calibration import print_calibration
from choral.config import Config
from choral.core.errors import ConfigError, DataError
from choral.ensembles.saved_combination import CombinationRequest, combine_run
from choral.inference.ledger import Ledger
from choral.runs.run_dir import RunDir, write_json
from choral.scoring.calibrate import CalibrationRequest, calibrate_run
from choral.scoring.calibration_figure import draw_calibration
from choral.scoring.policy import PredictionPolicy, check_policy, read_policy
from choral.scoring.predictor import list_predictors, load_predictor
from choral.scoring.predictor_report import build_predictor_report
from drawn_figures import misplaced_texts, svg_texts
from made_runs import MEMBERS, made_run, numbers, predictions, write_ledger


@pytest.fixture(name="made")
def run(tmp_path: Path) -> tuple[RunDir, Config]:
    return made_run(tmp_path / "runs" / "made", {"val": predictions(150, seed=1), "test": predictions(300, seed=2)})


def stack_of(policy: PredictionPolicy, ledger: Ledger) -> np.ndarray:
    """Predictions of members averaged over views; the synthetic ledgers keep no single views."""
    return np.stack([ledger.predictions(member, "tta") for member in policy.members])


def test_report_evaluates_the_written_policy(made: tuple[RunDir, Config]) -> None:
    folder, config = made
    report = calibrate_run(
        folder, config, "test", CalibrationRequest(of="weighted+tta", method="vector", sets="lac", by_class=True)
    )
    policy, ledger = read_policy(folder), Ledger.open(folder.predictions / "test.parquet")
    assert policy is not None and policy.to_json() == report["answer"]
    assert policy.views == {"identity": 0.5, "hflip": 0.5} and policy.of == "weighted+tta"
    after = policy.calibration(policy.rule(stack_of(policy, ledger)).predictions)
    hits = after.argmax(axis=1) == ledger.labels
    assert report["metrics"]["accuracy"]["after"]["value"] == pytest.approx(hits.mean())
    brier = ((after - np.eye(3)[ledger.labels]) ** 2).sum(axis=1).mean()
    assert report["metrics"]["brier"]["after"]["value"] == pytest.approx(brier, rel=1e-5)
    assert policy.conformal is not None and len(policy.conformal.quantiles) == 3
    sets = policy.conformal.sets(after)
    covered = sets[np.arange(300), ledger.labels]
    assert report["conformal"]["covered"]["value"] == pytest.approx(covered.mean())
    assert report["conformal"]["each"]["y"]["value"] == pytest.approx(covered[ledger.labels == 1].mean())
    assert report["conformal"]["size"]["value"] == pytest.approx(sets.sum(axis=1).mean())
    card = build_predictor_report(load_predictor(folder, config, "test", "weighted+tta"))
    for name in ("accuracy", "log_loss", "brier", "ece"):
        assert report["metrics"][name]["before"] == card["metrics"][name]
    assert report["plain_ece"]["before"] == card["plain_ece"]
    loss = report["metrics"]["log_loss"]
    assert loss["difference"]["value"] == pytest.approx(loss["after"]["value"] - loss["before"]["value"])
    assert sum(one["n"] for one in report["reliability"]["after"]) == 300


def test_the_scored_split_is_not_used_for_fitting(made: tuple[RunDir, Config]) -> None:
    """Other labels and predictions of the test split leave the policy unchanged to the last digit."""
    folder, config = made
    request = CalibrationRequest(
        of="greedy+tta", method="isotonic", thresholds=("y:recall>=0.9",), unsure_below="accuracy>=0.9"
    )
    first = calibrate_run(folder, config, "test", request)
    labels, columns = predictions(300, seed=9)
    write_ledger(folder.predictions / "test.parquet", labels, columns)
    second = calibrate_run(folder, config, "test", request)
    assert first["answer"] == second["answer"]
    assert first["metrics"] != second["metrics"]


def test_costs_decrease_and_thresholds_reach_their_targets(made: tuple[RunDir, Config], tmp_path: Path) -> None:
    folder, config = made
    (tmp_path / "costs.yaml").write_text("x: {y: 20, z: 5}\n")
    report = calibrate_run(folder, config, "test", CalibrationRequest(costs=str(tmp_path / "costs.yaml")))
    assert report["answer"]["decision"]["costs"] == [[0, 20, 5], [1, 0, 1], [1, 1, 0]]
    again = calibrate_run(folder, config, "test", CalibrationRequest(costs="x->y=20, x->z=5"))
    assert again["answer"] == report["answer"]
    assert report["decision"]["cost"]["difference"]["high"] < 0
    confusion = np.array(report["decision"]["confusion"]["after"])
    assert report["decision"]["cost"]["after"]["value"] == pytest.approx(
        (confusion * report["answer"]["decision"]["costs"]).sum() / 300
    )
    report = calibrate_run(
        folder, config, "test", CalibrationRequest(thresholds=("y:recall>=0.95",), unsure_below="coverage>=0.8")
    )
    one = report["decision"]["thresholds"]["y"]
    card = build_predictor_report(load_predictor(folder, config, "test", "answer"))
    assert (card["by_class"]["y"]["recall"] or {})["value"] == pytest.approx(one["after"]["recall"]["value"])
    assert (card["by_class"]["y"]["precision"] or {})["value"] == pytest.approx(one["after"]["precision"]["value"])
    assert one["after"]["recall"]["value"] > 0.9 > one["before"]["recall"]["value"]
    unsure = report["unsure"]
    assert unsure["accuracy_sure"]["value"] > unsure["accuracy_all"]["value"] > unsure["accuracy_unsure"]["value"]
    assert unsure["answered"]["value"] == pytest.approx(0.8, abs=0.1)


@pytest.mark.parametrize(
    ("invalid", "message"),
    [
        (CalibrationRequest(of="hard"), "--of hard: gives shares of votes, no probabilities to calibrate; choose soft"),
        (CalibrationRequest(of="sofd"), "no predictor 'sofd'. Did you mean soft?"),
        (CalibrationRequest(method="isotonik"), "--method: no method 'isotonik'. Did you mean isotonic?"),
        (
            CalibrationRequest(coverage=1.0),
            "--coverage: expected a number between 0 and 1, such as 0.9, or none, got 1",
        ),
        (CalibrationRequest(sets="lacc"), "--set: no score 'lacc' for multiclass. Did you mean lac?"),
        (CalibrationRequest(coverage=None, by_class=True), "--set, --by-class: need --coverage"),
        (CalibrationRequest(costs="x->w=1"), "--cost: no class 'w'."),
        (CalibrationRequest(costs="x=1"), "--cost: expected a .yaml file or TRUE->PREDICTED=NUMBER,..., got 'x=1'"),
        (CalibrationRequest(costs="x->y=much"), "--cost: x->y: expected a number, got 'much'"),
        (CalibrationRequest(costs="x->y=2", thresholds=("y:f1",)), "--cost and --threshold: choose one"),
        (
            CalibrationRequest(thresholds=("f1",)),
            "--threshold: name the one class that has a threshold, such as --threshold 'z:f1'",
        ),
        (CalibrationRequest(thresholds=("v:f1",)), "--threshold: no class 'v'."),
        (CalibrationRequest(thresholds=("y:f3",)), "y: --threshold: invalid rule 'f3'"),
    ],
    ids=lambda value: value.replace(" ", "-")[:30] if isinstance(value, str) else "",
)
def test_invalid_requests_are_refused(made: tuple[RunDir, Config], invalid: CalibrationRequest, message: str) -> None:
    folder, config = made
    with pytest.raises(ConfigError) as error:
        calibrate_run(folder, config, "test", invalid)
    assert message in str(error.value)
    assert read_policy(folder) is None


def test_the_split_that_is_fitted_on_is_not_scored(made: tuple[RunDir, Config]) -> None:
    folder, config = made
    with pytest.raises(ConfigError, match="--split val: nothing can be fitted: rules are fitted on 'val'"):
        calibrate_run(folder, config, "val", CalibrationRequest())
    (folder.predictions / "val.parquet").unlink()
    with pytest.raises(ConfigError, match="nothing can be fitted: 'val' is not evaluated: choral evaluate made"):
        calibrate_run(folder, config, "test", CalibrationRequest())


def test_policies_of_other_weights_and_damaged_ones_are_refused(made: tuple[RunDir, Config]) -> None:
    folder, config = made
    calibrate_run(folder, config, "test", CalibrationRequest())
    policy = read_policy(folder)
    assert policy is not None
    check_policy(folder, policy, "e")
    with pytest.raises(DataError, match="answer.json: was fitted to other weights than the current ones, or"):
        check_policy(folder, policy, "f")
    content = policy.to_json()
    for part, message in (
        ({"fitted_on": {"sha256": "0"}}, "KeyError.*'split'"),
        ({"decision": {"kind": "costs", "costs": [[0, 1], [1, 0]]}}, "costs are not 3 x 3"),
        ({"decision": {"kind": "thresholds", "thresholds": {"w": 0.5}, "rules": {"w": "f1"}}}, "of unknown classes w"),
        ({"rule": {**content["rule"], "rule": "weighted", "weights": [0.5, 0.5]}}, "2 weights of 3 members"),
    ):
        write_json(folder.path / "answer.json", {**content, **part})
        with pytest.raises(DataError, match=f"answer.json: is damaged .*{message}"):
            read_policy(folder)
    write_json(folder.path / "answer.json", {**content, "format": "choral-answer-9"})
    with pytest.raises(DataError, match="answer.json: is damaged .*choral-answer-9"):
        read_policy(folder)


def test_the_calibrated_policy_is_a_predictor(made: tuple[RunDir, Config]) -> None:
    folder, config = made
    assert "answer" not in list_predictors(folder, config, "test")
    with pytest.raises(ConfigError, match="no predictor 'answer': .* run `choral calibrate made`"):
        load_predictor(folder, config, "test", "answer")
    calibrate_run(folder, config, "test", CalibrationRequest(of="soft"))
    policy, ledger = read_policy(folder), Ledger.open(folder.predictions / "test.parquet")
    assert policy is not None and policy.views == {"identity": 1.0}
    assert list_predictors(folder, config, "test")[-1] == "answer"
    found = load_predictor(folder, config, "test")
    assert (found.name, found.gives_probabilities) == ("answer", True)
    stack = np.stack([ledger.predictions(member) for member in MEMBERS])
    np.testing.assert_array_equal(found.predictions, policy.predict(stack[:, None]))
    with pytest.raises(ConfigError, match="--of answer: is calibrated already"):
        calibrate_run(folder, config, "test", CalibrationRequest(of="answer"))
    calibrate_run(folder, config, "test", CalibrationRequest())  # calibrated again, it is the vote that is meant
    assert "answer" not in list_predictors(folder, config, "val")  # it was fitted there
    with pytest.raises(DataError, match="was fitted on 'val', which therefore cannot be scored with it"):
        load_predictor(folder, config, "val", "answer")
    write_ledger(folder.predictions / "test.parquet", *predictions(300, seed=2), evaluation="f")
    assert "answer" not in list_predictors(folder, config, "test")


def test_learned_views_are_weighted(tmp_path: Path) -> None:
    """If the ledger keeps single views, the policy holds their weights and needs these views on the scored split."""
    views = ("identity", "hflip", "tta")
    ledgers = {split: predictions(150, seed=seed, views=views) for seed, split in enumerate(("val", "test"))}
    folder, config = made_run(tmp_path / "runs" / "made", ledgers)
    report = calibrate_run(folder, config, "test", CalibrationRequest(of="soft+learned"))
    weights = report["answer"]["views"]
    assert set(weights) == {"identity", "hflip"} and sum(weights.values()) == pytest.approx(1)
    policy, ledger = read_policy(folder), Ledger.open(folder.predictions / "test.parquet")
    assert policy is not None
    stack = np.stack([[ledger.predictions(member, view) for view in weights] for member in MEMBERS])
    found = load_predictor(folder, config, "test", "answer").predictions
    np.testing.assert_allclose(found, policy.predict(stack), atol=1e-7)
    write_ledger(folder.predictions / "test.parquet", *predictions(150, seed=1))
    with pytest.raises(DataError, match="needs hflip of .*: evaluate with evaluate.keep_views=true"):
        load_predictor(folder, config, "test", "answer")


def test_a_stored_combination_can_be_calibrated(made: tuple[RunDir, Config]) -> None:
    folder, config = made
    combine_run(
        folder, config, "test", CombinationRequest("weighted", members=("a", "b"), temperature="none", name="two")
    )
    report = calibrate_run(folder, config, "test", CalibrationRequest(of="combined/two"))
    assert report["answer"]["members"] == ["a", "b"] and report["answer"]["rule"]["rule"] == "weighted"
    policy, ledger = read_policy(folder), Ledger.open(folder.predictions / "test.parquet")
    assert policy is not None
    kept = Ledger.open(folder.path / "combined" / "two" / "test.parquet").predictions("two", "tta")
    np.testing.assert_array_equal(policy.rule(stack_of(policy, ledger)).predictions, kept)


@pytest.mark.parametrize("task", ["multilabel", "regression"])
def test_multilabel_and_regression(task: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    ledgers = {}
    for place, (split, count) in enumerate({"val": 200, "test": 400}.items()):
        labels = (rng.random((count, 2)) < 0.4) if task == "multilabel" else rng.normal(size=(count, 2))
        ledgers[split] = (labels.astype("f4"), numbers(labels.astype("f4"), task, seed=place))
    folder, config = made_run(tmp_path / "runs" / "made", ledgers, classes=("u", "v"), task=task)
    rules = ("v:recall>=0.95", "f1") if task == "multilabel" else ()
    report = calibrate_run(folder, config, "test", CalibrationRequest(coverage=0.8, thresholds=rules))
    for name in ("u", "v"):
        each = report["conformal"]["each"][name]
        assert each["value"] == pytest.approx(0.8, abs=0.08)
        assert each["n"] == (400 if task == "regression" else int(ledgers["test"][0][:, "uv".index(name)].sum()))
    if task == "multilabel":
        assert report["answer"]["decision"]["rules"] == {"u": "f1", "v": "recall>=0.95"}
        assert report["decision"]["thresholds"]["v"]["after"]["recall"]["value"] > 0.88
        assert report["metrics"]["log_loss"]["difference"]["high"] < 0
    else:
        policy = read_policy(folder)
        assert policy is not None and report["method"] == "none" and "metrics" not in report
        ledger = Ledger.open(folder.predictions / "test.parquet")
        mean = np.mean([ledger.predictions(member) for member in MEMBERS], axis=0)
        inside = np.abs(mean - ledger.labels)[:, 0] <= report["conformal"]["half_width"]["u"]
        assert report["conformal"]["each"]["u"]["value"] == pytest.approx(inside.mean())
        with pytest.raises(ConfigError, match="--cost, --threshold: only for multiclass and multilabel"):
            calibrate_run(folder, config, "test", CalibrationRequest(thresholds=("u:f1",)))


def test_the_command(
    made: tuple[RunDir, Config], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    folder, _ = made
    command = ["calibrate", str(folder.path), "--cost", "x->y=9", "--unsure-below", "0.6", "--method", "auto"]
    assert cli.main([*command, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    losses = report["cross_fitted_log_loss"]
    assert report["method"] == min(losses, key=losses.__getitem__) and set(losses) == {
        *("none", "temperature", "vector", "isotonic")
    }
    kept = json.loads((folder.path / "calibration-test.json").read_text())
    assert kept == report
    assert (folder.path / "calibration-test.png").is_file()
    content = (folder.path / "calibration-test.svg").read_bytes()
    assert misplaced_texts(content) == []
    assert "before; 10 bins of about 30" in svg_texts(content)
    reliability, selective = draw_calibration(report).axes
    points = [len(line.get_xdata()) for line in reliability.lines]
    assert points[:3] == [2, 10, 10]  # the diagonal, the bins before, the bins after
    assert selective.lines[0].get_ydata().tolist() == pytest.approx(
        [100 * value for value in report["selective"]["accuracy"]]
    )
    print_calibration(report, folder, cli.consoles.stdout)
    printed = capsys.readouterr().out
    for words in (
        "ECE, %",
        "AURC, %",
        "sets that contain the class with a probability of 90 %",
        "x->y (costs 9)",
        "accuracy of unsure ones",
    ):
        assert words in printed
    assert max(map(len, printed.splitlines()[:-2])) <= 80
    assert cli.main(["calibrate", str(folder.path), "--coverage", "most"]) == 2
    assert "--coverage: expected a number between 0 and 1, or none, got 'most'" in capsys.readouterr().err
