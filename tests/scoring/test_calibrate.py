"""Calibrating a run, from ledgers to answer.json and the figure: what is fitted where, what is refused, and what is said."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from choral import cli
from choral.cli import workflow
from choral.config import Config
from choral.core.errors import ConfigError, DataError
from choral.ensembles.saved_combination import Asked as AskedCombination
from choral.ensembles.saved_combination import combine_run
from choral.inference.ledger import Ledger
from choral.runs.run_dir import RunDir, write_json
from choral.scoring.calibrate import Asked, calibrate_run
from choral.scoring.policy import PredictionPolicy, check_answer, read_answer
from choral.scoring.predictor import predictor_names, predictor_of
from choral.scoring.predictor_report import card_json
from made_runs import MEMBERS, made_run, numbers, predictions, write_ledger


@pytest.fixture(name="made")
def run(tmp_path: Path) -> tuple[RunDir, Config]:
    return made_run(tmp_path / "runs" / "made", {"val": predictions(150, seed=1), "test": predictions(300, seed=2)})


def stack_of(answering: PredictionPolicy, ledger: Ledger) -> np.ndarray:
    """What members said under the mean over views; the made ledgers keep no single ones."""
    return np.stack([ledger.predictions(member, "tta") for member in answering.members])


def test_the_report_is_of_what_the_answer_says(made: tuple[RunDir, Config]) -> None:
    folder, config = made
    report = calibrate_run(folder, config, "test", Asked(of="weighted+tta", method="vector", sets="lac", by_class=True))
    answering, ledger = read_answer(folder), Ledger.open(folder.predictions / "test.parquet")
    assert answering is not None and answering.to_json() == report["answer"]
    assert answering.views == {"identity": 0.5, "hflip": 0.5} and answering.of == "weighted+tta"
    after = answering.calibration(answering.rule(stack_of(answering, ledger)).predictions)
    hits = after.argmax(axis=1) == ledger.labels
    assert report["metrics"]["accuracy"]["after"]["value"] == pytest.approx(hits.mean())
    brier = ((after - np.eye(3)[ledger.labels]) ** 2).sum(axis=1).mean()
    assert report["metrics"]["brier"]["after"]["value"] == pytest.approx(brier, rel=1e-5)
    assert answering.conformal is not None and len(answering.conformal.quantiles) == 3
    sets = answering.conformal.sets(after)
    covered = sets[np.arange(300), ledger.labels]
    assert report["conformal"]["covered"]["value"] == pytest.approx(covered.mean())
    assert report["conformal"]["each"]["y"]["value"] == pytest.approx(covered[ledger.labels == 1].mean())
    assert report["conformal"]["size"]["value"] == pytest.approx(sets.sum(axis=1).mean())
    card = card_json(predictor_of(folder, config, "test", "weighted+tta"))
    for name in ("accuracy", "log_loss", "brier", "ece"):
        assert report["metrics"][name]["before"] == card["metrics"][name]
    assert report["plain_ece"]["before"] == card["plain_ece"]
    loss = report["metrics"]["log_loss"]
    assert loss["difference"]["value"] == pytest.approx(loss["after"]["value"] - loss["before"]["value"])
    assert sum(one["n"] for one in report["reliability"]["after"]) == 300


def test_nothing_of_the_scored_split_is_used(made: tuple[RunDir, Config]) -> None:
    """Other labels and predictions of test leave the answer as it is, to the last digit."""
    folder, config = made
    asked = Asked(of="greedy+tta", method="isotonic", thresholds=("y:recall>=0.9",), unsure_below="accuracy>=0.9")
    first = calibrate_run(folder, config, "test", asked)
    labels, columns = predictions(300, seed=9)
    write_ledger(folder.predictions / "test.parquet", labels, columns)
    second = calibrate_run(folder, config, "test", asked)
    assert first["answer"] == second["answer"]
    assert first["metrics"] != second["metrics"]


def test_costs_are_paid_less_and_thresholds_reach_what_was_asked(made: tuple[RunDir, Config], tmp_path: Path) -> None:
    folder, config = made
    (tmp_path / "costs.yaml").write_text("x: {y: 20, z: 5}\n")
    report = calibrate_run(folder, config, "test", Asked(costs=str(tmp_path / "costs.yaml")))
    assert report["answer"]["decision"]["costs"] == [[0, 20, 5], [1, 0, 1], [1, 1, 0]]
    again = calibrate_run(folder, config, "test", Asked(costs="x->y=20, x->z=5"))
    assert again["answer"] == report["answer"]
    assert report["decision"]["cost"]["difference"]["high"] < 0
    confusion = np.array(report["decision"]["confusion"]["after"])
    assert report["decision"]["cost"]["after"]["value"] == pytest.approx(
        (confusion * report["answer"]["decision"]["costs"]).sum() / 300
    )
    report = calibrate_run(folder, config, "test", Asked(thresholds=("y:recall>=0.95",), unsure_below="coverage>=0.8"))
    one = report["decision"]["thresholds"]["y"]
    card = card_json(predictor_of(folder, config, "test", "answer"))
    assert (card["by_class"]["y"]["recall"] or {})["value"] == pytest.approx(one["after"]["recall"]["value"])
    assert (card["by_class"]["y"]["precision"] or {})["value"] == pytest.approx(one["after"]["precision"]["value"])
    assert one["after"]["recall"]["value"] > 0.9 > one["before"]["recall"]["value"]
    unsure = report["unsure"]
    assert unsure["accuracy_sure"]["value"] > unsure["accuracy_all"]["value"] > unsure["accuracy_unsure"]["value"]
    assert unsure["answered"]["value"] == pytest.approx(0.8, abs=0.1)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (Asked(of="hard"), "--of hard: gives shares of votes, no probabilities to calibrate; choose soft"),
        (Asked(of="sofd"), "no predictor 'sofd'. Did you mean soft?"),
        (Asked(method="isotonik"), "--method: no method 'isotonik'. Did you mean isotonic?"),
        (Asked(coverage=1.0), "--coverage: expected a number between 0 and 1, such as 0.9, or none, got 1"),
        (Asked(sets="lacc"), "--set: no score 'lacc' of task multiclass. Did you mean lac?"),
        (Asked(coverage=None, by_class=True), "--set, --by-class: belong to --coverage"),
        (Asked(costs="x->w=1"), "--cost: no class 'w'."),
        (Asked(costs="x=1"), "--cost: expected a .yaml file or TRUE->PREDICTED=NUMBER,..., got 'x=1'"),
        (Asked(costs="x->y=much"), "--cost: x->y: expected a number, got 'much'"),
        (Asked(costs="x->y=2", thresholds=("y:f1",)), "--cost and --threshold: choose one"),
        (Asked(thresholds=("f1",)), "--threshold: name the one class that has a threshold: --threshold 'z:f1'"),
        (Asked(thresholds=("v:f1",)), "--threshold: no class 'v'."),
        (Asked(thresholds=("y:f3",)), "y: --threshold: 'f3' is no rule"),
    ],
    ids=lambda value: value.replace(" ", "-")[:30] if isinstance(value, str) else "",
)
def test_what_cannot_be_is_refused(made: tuple[RunDir, Config], asked: Asked, message: str) -> None:
    folder, config = made
    with pytest.raises(ConfigError) as error:
        calibrate_run(folder, config, "test", asked)
    assert message in str(error.value)
    assert read_answer(folder) is None


def test_the_split_that_is_fitted_on_is_not_scored(made: tuple[RunDir, Config]) -> None:
    folder, config = made
    with pytest.raises(ConfigError, match="--split val: nothing can be fitted: 'val' is what rules are fitted on"):
        calibrate_run(folder, config, "val", Asked())
    (folder.predictions / "val.parquet").unlink()
    with pytest.raises(ConfigError, match="nothing can be fitted: 'val' is not evaluated: choral evaluate made"):
        calibrate_run(folder, config, "test", Asked())


def test_an_answer_of_other_weights_or_a_damaged_one_is_refused(made: tuple[RunDir, Config]) -> None:
    folder, config = made
    calibrate_run(folder, config, "test", Asked())
    answering = read_answer(folder)
    assert answering is not None
    check_answer(folder, answering, "e")
    with pytest.raises(DataError, match="answer.json: was fitted to other weights than there are now, or"):
        check_answer(folder, answering, "f")
    content = answering.to_json()
    for part, message in (
        ({"fitted_on": {"sha256": "0"}}, "KeyError.*'split'"),
        ({"decision": {"kind": "costs", "costs": [[0, 1], [1, 0]]}}, "costs that are not 3 x 3"),
        ({"decision": {"kind": "thresholds", "thresholds": {"w": 0.5}, "rules": {"w": "f1"}}}, "thresholds of w"),
        ({"rule": {**content["rule"], "rule": "weighted", "weights": [0.5, 0.5]}}, "2 weights of 3 members"),
    ):
        write_json(folder.path / "answer.json", {**content, **part})
        with pytest.raises(DataError, match=f"answer.json: is damaged .*{message}"):
            read_answer(folder)
    write_json(folder.path / "answer.json", {**content, "format": "choral-answer-9"})
    with pytest.raises(DataError, match="answer.json: is damaged .*choral-answer-9"):
        read_answer(folder)


def test_the_answer_is_a_predictor_like_others(made: tuple[RunDir, Config]) -> None:
    folder, config = made
    assert "answer" not in predictor_names(folder, config, "test")
    with pytest.raises(ConfigError, match="no predictor 'answer': .* run `choral calibrate made`"):
        predictor_of(folder, config, "test", "answer")
    calibrate_run(folder, config, "test", Asked(of="soft"))
    answering, ledger = read_answer(folder), Ledger.open(folder.predictions / "test.parquet")
    assert answering is not None and answering.views == {"identity": 1.0}
    assert predictor_names(folder, config, "test")[-1] == "answer"
    found = predictor_of(folder, config, "test")
    assert (found.name, found.gives_probabilities) == ("answer", True)
    stack = np.stack([ledger.predictions(member) for member in MEMBERS])
    np.testing.assert_array_equal(found.predictions, answering.answer_of(stack[:, None]))
    with pytest.raises(ConfigError, match="--of answer: is what was calibrated already"):
        calibrate_run(folder, config, "test", Asked(of="answer"))
    calibrate_run(folder, config, "test", Asked())  # calibrated again, it is the vote that is meant
    assert "answer" not in predictor_names(folder, config, "val")  # it was fitted there
    with pytest.raises(DataError, match="was fitted on 'val', and what is scored must be something else"):
        predictor_of(folder, config, "val", "answer")
    write_ledger(folder.predictions / "test.parquet", *predictions(300, seed=2), evaluation="f")
    assert "answer" not in predictor_names(folder, config, "test")


def test_views_that_were_learned_are_weighted(tmp_path: Path) -> None:
    """With the views of the ledger kept, the answer names their weights, and needs them where it is scored."""
    views = ("identity", "hflip", "tta")
    ledgers = {split: predictions(150, seed=seed, views=views) for seed, split in enumerate(("val", "test"))}
    folder, config = made_run(tmp_path / "runs" / "made", ledgers)
    report = calibrate_run(folder, config, "test", Asked(of="soft+learned"))
    weights = report["answer"]["views"]
    assert set(weights) == {"identity", "hflip"} and sum(weights.values()) == pytest.approx(1)
    answering, ledger = read_answer(folder), Ledger.open(folder.predictions / "test.parquet")
    assert answering is not None
    stack = np.stack([[ledger.predictions(member, view) for view in weights] for member in MEMBERS])
    found = predictor_of(folder, config, "test", "answer").predictions
    np.testing.assert_allclose(found, answering.answer_of(stack), atol=1e-7)
    write_ledger(folder.predictions / "test.parquet", *predictions(150, seed=1))
    with pytest.raises(DataError, match="needs hflip of .*: evaluate with evaluate.keep_views=true"):
        predictor_of(folder, config, "test", "answer")


def test_a_combination_that_was_kept_can_be_calibrated(made: tuple[RunDir, Config]) -> None:
    folder, config = made
    combine_run(
        folder, config, "test", AskedCombination("weighted", members=("a", "b"), temperature="none", name="two")
    )
    report = calibrate_run(folder, config, "test", Asked(of="combined/two"))
    assert report["answer"]["members"] == ["a", "b"] and report["answer"]["rule"]["rule"] == "weighted"
    answering, ledger = read_answer(folder), Ledger.open(folder.predictions / "test.parquet")
    assert answering is not None
    kept = Ledger.open(folder.path / "combined" / "two" / "test.parquet").predictions("two", "tta")
    np.testing.assert_array_equal(answering.rule(stack_of(answering, ledger)).predictions, kept)


@pytest.mark.parametrize("task", ["multilabel", "regression"])
def test_labels_and_numbers(task: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    ledgers = {}
    for place, (split, count) in enumerate({"val": 200, "test": 400}.items()):
        labels = (rng.random((count, 2)) < 0.4) if task == "multilabel" else rng.normal(size=(count, 2))
        ledgers[split] = (labels.astype("f4"), numbers(labels.astype("f4"), task, seed=place))
    folder, config = made_run(tmp_path / "runs" / "made", ledgers, classes=("u", "v"), task=task)
    rules = ("v:recall>=0.95", "f1") if task == "multilabel" else ()
    report = calibrate_run(folder, config, "test", Asked(coverage=0.8, thresholds=rules))
    for name in ("u", "v"):
        each = report["conformal"]["each"][name]
        assert each["value"] == pytest.approx(0.8, abs=0.08)
        assert each["n"] == (400 if task == "regression" else int(ledgers["test"][0][:, "uv".index(name)].sum()))
    if task == "multilabel":
        assert report["answer"]["decision"]["rules"] == {"u": "f1", "v": "recall>=0.95"}
        assert report["decision"]["thresholds"]["v"]["after"]["recall"]["value"] > 0.88
        assert report["metrics"]["log_loss"]["difference"]["high"] < 0
    else:
        answering = read_answer(folder)
        assert answering is not None and report["method"] == "none" and "metrics" not in report
        ledger = Ledger.open(folder.predictions / "test.parquet")
        mean = np.mean([ledger.predictions(member) for member in MEMBERS], axis=0)
        inside = np.abs(mean - ledger.labels)[:, 0] <= report["conformal"]["half_width"]["u"]
        assert report["conformal"]["each"]["u"]["value"] == pytest.approx(inside.mean())
        with pytest.raises(ConfigError, match="--cost, --threshold: are for classes and labels"):
            calibrate_run(folder, config, "test", Asked(thresholds=("u:f1",)))


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
    figure = ElementTree.fromstring((folder.path / "calibration-test.svg").read_text())
    assert len(figure.findall("{http://www.w3.org/2000/svg}circle")) == 20  # ten bins before and after
    workflow.print_calibration(report, folder, cli.parser.stdout)
    printed = capsys.readouterr().out
    for words in (
        "ECE, %",
        "AURC, %",
        "sets that hold the class with a probability of 90 %",
        "x taken for y (costs 9)",
        "not unsure",
    ):
        assert words in printed
    assert max(map(len, printed.splitlines()[:-2])) <= 80
    assert cli.main(["calibrate", str(folder.path), "--coverage", "most"]) == 2
    assert "--coverage: expected a number between 0 and 1, or none, got 'most'" in capsys.readouterr().err
