"""`choral combine` and the rules of the score table: what is kept, what is fitted on which data, and what is rejected."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from choral.cli import main
from choral.ensembles.combination_table import render_combination
from choral.ensembles.member_weights import min_log_loss_weights
from choral.ensembles.rules import apply_temperature, soft_vote, weighted_mean
from choral.ensembles.saved_combination import CombinationRequest, combine_run
from choral.inference.ledger import Ledger
from choral.runs.run_dir import RunDir
from made_runs import FOLDED, FOLDS, MEMBERS, Columns, made_rounds, made_run, numbers, predictions, write_ledger

VAL, TEST = predictions(150, seed=1), predictions(260, seed=2)


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return made_run(tmp_path / "run", {"val": VAL, "test": TEST})[0]


@pytest.fixture
def folded(tmp_path: Path) -> RunDir:
    ledgers = {"val": predictions(120, FOLDED, seed=1), "test": predictions(130, FOLDED, seed=2)}
    run, _ = made_run(tmp_path / "folded", ledgers, FOLDS)
    write_ledger(run.predictions / "held-out.parquet", *predictions(400, ("net", "other"), seed=3))
    return run


def combine(run: RunDir, capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["combine", str(run.path), *arguments, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def kept_predictions(run: RunDir, name: str, split: str = "test") -> np.ndarray:
    ledger = Ledger.open(run.path / "combined" / name / f"{split}.parquet")
    assert ledger.members == (name,)
    evaluated = Ledger.open(run.predictions / f"{split}.parquet")
    assert ledger.keys == evaluated.keys and np.array_equal(ledger.labels, evaluated.labels)
    return ledger.predictions(name, ledger.views[0])


def stack_of(columns: Columns, view: str = "tta", members: tuple[str, ...] = MEMBERS) -> np.ndarray:
    return np.stack([columns[member, view] for member in members])


def accuracy(predictions: np.ndarray, labels: np.ndarray) -> float:
    return float((predictions.argmax(1) == labels).mean())


def row(found: dict[str, Any], name: str, metric: str) -> dict[str, Any]:
    (only,) = (row for row in found["scores"] if (row["name"], row["metric"]) == (name, metric))
    return dict(only)


def test_a_combination_is_fitted_on_validation_and_scored_on_test(
    run: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    found = combine(run, capsys, "--rule", "weighted")
    truths = stack_of(VAL[1])[:, np.arange(150), VAL[0]].T.astype(float)
    weights = min_log_loss_weights(truths).values
    assert list(found["fit"]["weights"].values()) == pytest.approx(weights.tolist())
    assert (found["fit"]["on"], found["fit"]["samples"], found["fitted_on"]) == ("val", 150, "val")
    assert found["fit"]["calibrated"]["after"] <= found["fit"]["calibrated"]["before"]
    expected = apply_temperature(weighted_mean(stack_of(TEST[1]), weights), found["fit"]["temperature"], "multiclass")
    np.testing.assert_allclose(kept_predictions(run, "weighted"), expected, atol=1e-6)
    combined, mean = row(found, "combined/weighted", "accuracy"), soft_vote(stack_of(TEST[1]))
    assert combined["value"] == pytest.approx(accuracy(expected, TEST[0]))
    assert combined["low"] < combined["value"] < combined["high"]
    gain = combined["to_baseline"]
    assert gain["to"] == "soft" and gain["value"] == pytest.approx(combined["value"] - accuracy(mean, TEST[0]))
    loss = -np.log(expected[np.arange(260), TEST[0]].astype(float)).mean()
    assert row(found, "combined/weighted", "log_loss")["value"] == pytest.approx(loss, rel=1e-5)
    best = max(MEMBERS, key=lambda member: accuracy(TEST[1][member, "tta"], TEST[0]))
    assert combined["difference"]["to"] == f"member/{best}"
    rule = json.loads((run.path / "combined" / "weighted" / "rule.json").read_text())
    assert rule["fit"] == found["fit"] and set(rule["splits"]["test"]["sources"]) == {
        str(run.predictions / "test.parquet"),
        str(run.predictions / "val.parquet"),
    }


def test_a_second_call_does_nothing_until_a_file_changes(
    run: RunDir, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = combine(run, capsys, "--rule", "greedy", "--by", "accuracy")
    out = run.path / "combined" / "greedy" / "test.parquet"
    before = out.stat().st_mtime_ns
    with monkeypatch.context() as patched:
        patched.setattr(
            "choral.ensembles.saved_combination.fit_weights", lambda *a, **k: pytest.fail("it was fitted before")
        )
        assert combine(run, capsys, "--rule", "greedy", "--by", "accuracy") == {**first, "again": True}
        assert main(["combine", str(run.path), "--rule", "greedy", "--by", "accuracy"]) == 0
    assert out.stat().st_mtime_ns == before
    assert "up to date" in capsys.readouterr().err
    out.write_bytes(b"broken")
    assert combine(run, capsys, "--rule", "greedy", "--by", "accuracy") == first
    write_ledger(run.predictions / "val.parquet", *predictions(150, seed=9))
    changed = combine(run, capsys, "--rule", "greedy", "--by", "accuracy")
    assert not changed["again"] and changed["fit"] != first["fit"]


def test_splits_of_one_rule_are_kept_and_those_of_another_removed(
    run: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    for split in ("test", "val"):
        combine(run, capsys, "--rule", "hard", "--name", "mine", "--split", split)
    folder = run.path / "combined" / "mine"
    assert set(json.loads((folder / "rule.json").read_text())["splits"]) == {"test", "val"}
    combine(run, capsys, "--rule", "soft", "--name", "mine", "--temperature", "none")
    assert {path.name for path in folder.iterdir()} == {"test.parquet", "rule.json"}
    np.testing.assert_array_equal(kept_predictions(run, "mine"), soft_vote(stack_of(TEST[1])))


def test_hard_votes_report_their_ties(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    found = combine(run, capsys, "--rule", "hard", "--views", "identity")
    ballots = stack_of(TEST[1], "identity").argmax(2)
    ties = sum(len(set(column)) == 3 for column in ballots.T)
    assert ties and row(found, "combined/hard", "accuracy")["ties"] == ties
    np.testing.assert_allclose(kept_predictions(run, "hard"), np.eye(3)[ballots].mean(0), atol=1e-6)
    assert main(["combine", str(run.path), "--rule", "hard", "--views", "identity"]) == 0
    assert f"tied votes, decided by mean probability: {ties}" in capsys.readouterr().out


def test_members_and_views_are_chosen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    views = ("identity", "hflip", "tta")
    run, _ = made_run(tmp_path / "run", {"test": predictions(50, seed=4, views=views)})
    columns = predictions(50, seed=4, views=views)[1]
    found = combine(run, capsys, "--rule", "mean", "--members", "c,a", "--views", "identity,hflip")
    parts = [columns[member, view].astype(float) for member in ("a", "c") for view in ("identity", "hflip")]
    np.testing.assert_allclose(kept_predictions(run, "soft"), np.mean(parts, axis=0), atol=1e-6)
    assert (found["members"], found["views"], found["fit"]["temperature"]) == (["a", "c"], ["identity", "hflip"], 1.0)
    assert Ledger.open(run.path / "combined" / "soft" / "test.parquet").meta.tta_views == ("identity", "hflip")
    alone = combine(run, capsys, "--rule", "hard", "--members", "b", "--name", "b")
    assert row(alone, "combined/b", "accuracy")["to_baseline"]["value"] == 0


def test_given_weights_and_temperatures(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    combine(
        run, capsys, "--rule", "weighted", "--weights", "a=0.7,b=0.3,c=0", "--temperature", "none", "--split", "val"
    )
    np.testing.assert_allclose(
        kept_predictions(run, "weighted", "val"), weighted_mean(stack_of(VAL[1]), (0.7, 0.3, 0)), atol=1e-7
    )
    combine(run, capsys, "--rule", "soft", "--temperature", "2")
    np.testing.assert_allclose(
        kept_predictions(run, "soft"), apply_temperature(soft_vote(stack_of(TEST[1])), 2.0, "multiclass"), atol=1e-7
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rule", "weightd"], "no rule 'weightd' for task multiclass. Did you mean weighted"),
        (["--rule", "median"], "no rule 'median' for task multiclass"),
        (["--rule", "weighted", "--split", "val"], "rules are fitted on 'val'.*or give --weights"),
        (["--rule", "greedy", "--split", "val"], "rules are fitted on 'val'"),
        (
            ["--rule", "soft", "--split", "val", "--temperature", "fit"],
            "--temperature fit: nothing to fit it on: rules are fitted on 'val'",
        ),
        (["--rule", "soft", "--temperature", "0"], "expected fit, none or a number"),
        (["--rule", "soft", "--temperature", "warm"], "got 'warm'"),
        (["--rule", "hard", "--temperature", "fit"], "hard gives no probabilities"),
        (["--rule", "stack"], "no member of this run left samples out.*ensemble.folds"),
        (["--rule", "boosting"], "no boosting rounds"),
        (["--rule", "weighted", "--weights", "a=1,b=0"], "none for c"),
        (["--rule", "weighted", "--weights", "a=1,b=1,c=0"], "sum to 1, got a=1, b=1, c=0"),
        (["--rule", "weighted", "--weights", "a=2,b=-1,c=0"], "0 or more that sum to 1, got a=2, b=-1, c=0"),
        (["--rule", "weighted", "--weights", "a=1,b=0,d=0"], "no member 'd'"),
        (["--rule", "weighted", "--weights", "a"], "expected MEMBER=NUMBER, got 'a'"),
        (["--rule", "soft", "--weights", "a=1,b=0,c=0"], "belong to --rule weighted"),
        (["--rule", "weighted", "--by", "accuracy"], "--by: belongs to --rule greedy"),
        (["--rule", "greedy", "--by", "f1"], "one of log_loss, accuracy"),
        (["--rule", "greedy", "--picks", "0"], "--picks: expected 1 or more"),
        (["--rule", "soft", "--members", "a,B"], "no member 'B'"),
        (["--rule", "soft", "--views", "hflip"], "holds no view 'hflip'.*keep_views"),
        (["--rule", "soft", "--views", "identity,tta"], "tta is already a mean over views"),
        (["--rule", "soft", "--name", "../up"], "'../up' is not a valid name"),
    ],
)
def test_invalid_options_are_rejected(
    run: RunDir, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["combine", str(run.path), *arguments]) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert error.startswith("error: ") and re.search(message, error), error
    assert not (run.path / "combined").exists()


def test_missing_or_stale_predictions_are_rejected(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["combine", str(run.path), "--rule", "soft", "--split", "train"]) == 1
    assert "split 'train' has not been evaluated (evaluated: test, val)" in " ".join(capsys.readouterr().err.split())
    write_ledger(run.predictions / "val.parquet", *VAL, evaluation="of other weights")
    assert main(["combine", str(run.path), "--rule", "greedy"]) == 2
    assert "'val' was evaluated with other weights than 'test'" in " ".join(capsys.readouterr().err.split())
    (run.predictions / "val.parquet").unlink()
    assert main(["combine", str(run.path), "--rule", "greedy"]) == 2
    assert "choral evaluate run 'evaluate.splits=[val, test]'" in " ".join(capsys.readouterr().err.split())
    assert combine(run, capsys, "--rule", "soft")["fit"]["temperature"] == 1.0


def test_stacking_is_fitted_on_out_of_fold_predictions(folded: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    found = combine(folded, capsys, "--rule", "stack", "--temperature", "none")
    fit = found["fit"]
    assert (fit["on"], fit["samples"], list(fit["weights"])) == ("held-out", 400, ["net", "other"])
    assert fit["groups"] == {"net": [0, 1, 2], "other": [3, 4, 5]}
    test = predictions(130, FOLDED, seed=2)[1]
    logs = [
        np.log(soft_vote(stack_of(test, "tta", FOLDED[3 * group : 3 * group + 3])).astype(float)) for group in (0, 1)
    ]
    scores = sum(weight * log for weight, log in zip(fit["weights"].values(), logs, strict=True)) + fit["biases"]
    expected = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    np.testing.assert_allclose(kept_predictions(folded, "stack"), expected, atol=1e-5)
    some = combine(folded, capsys, "--rule", "stack", "--members", "net-fold1,net-fold3", "--name", "some")
    assert some["fit"]["groups"] == {"net": [0, 1]}
    assert main(["combine", str(folded.path), "--rule", "stack", "--split", "held-out"]) == 2
    assert "so it must be scored on another" in " ".join(capsys.readouterr().err.split())
    assert main(["score", str(folded.path), "--split", "held-out"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert (
        "greedy or temperature: 'held-out' has a column for each group" in text
        and "no stack: stack is fitted on out-of" in text
    )
    (folded.predictions / "held-out.parquet").unlink()
    assert main(["combine", str(folded.path), "--rule", "stack"]) == 2
    assert "held-out.parquet does not exist: `choral evaluate folded`" in " ".join(capsys.readouterr().err.split())


def test_stacking_is_fitted_to_a_subset_of_very_many_samples(
    folded: RunDir, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("choral.ensembles.rule_fitting.LARGEST", 100 * 2 * 3)
    monkeypatch.setattr("choral.ensembles.stacking._ALL_FOLDS", 10)
    assert combine(folded, capsys, "--rule", "stack")["fit"]["samples"] == 100


def test_boosting_weights_votes_by_their_rounds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ("round1", "round2", "round3")
    ledgers = {"val": predictions(60, names, seed=1), "test": predictions(80, names, seed=2)}
    run, _ = made_run(tmp_path / "run", ledgers, ["ensemble.boosting=3"])
    made_rounds(run, {"round1": 2.0, "round2": 1.5, "round3": 0.2})
    found = combine(run, capsys, "--rule", "boosting", "--temperature", "none")
    assert found["fit"]["weights"] == {"round1": 2.0, "round2": 1.5, "round3": 0.2}
    votes = np.einsum("m,mnc->nc", (2.0, 1.5, 0.2), np.eye(3)[stack_of(ledgers["test"][1], "tta", names).argmax(2)])
    np.testing.assert_array_equal(kept_predictions(run, "boosting").argmax(1), votes.argmax(1))
    assert main(["score", str(run.path)]) == 0
    text = capsys.readouterr().out
    assert "boosting+tta" in text and "votes weighted by the alphas of their rounds" in text


def test_predictions_of_other_tools_are_combined(
    run: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for split, (labels, _) in (("val", VAL), ("test", TEST)):
        keys = Ledger.open(run.predictions / f"{split}.parquet").keys
        sure = np.full((len(labels), 3), 0.05)
        sure[np.arange(len(labels)), labels] = 0.9
        lines = [f"{key},{','.join(map(str, line))}" for key, line in zip(keys, sure, strict=True)]
        (tmp_path / f"oracle-{split}.csv").write_text("key,x,y,z\n" + "\n".join(lines[::-1]) + "\n")
    test, val = (f"oracle={tmp_path}/oracle-{split}.csv" for split in ("test", "val"))
    found = combine(run, capsys, "--rule", "greedy", "--with", test, "--with-val", val)
    assert found["fit"]["weights"]["oracle"] > 0.99 and row(found, "combined/greedy", "accuracy")["value"] == 1
    assert len(found["sources"]) == 4
    alone = combine(run, capsys, "--rule", "soft", "--with", test)
    assert alone["fit"]["calibrated"] is None and len(alone["members"]) == 4
    for arguments, message in (
        (["--rule", "greedy", "--with", test], "needs its predictions on 'val' too: --with-val oracle=FILE"),
        (["--rule", "stack", "--with", test], "stack needs out-of-fold"),
        (["--rule", "soft", "--with", test, "--with", test], "two members are called 'oracle'"),
    ):
        assert main(["combine", str(run.path), *arguments]) == 2
        assert message in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("task", ["multilabel", "regression"])
def test_multilabel_and_regression(tmp_path: Path, task: str, capsys: pytest.CaptureFixture[str]) -> None:
    rng, ledgers = np.random.default_rng(0), {}
    for split, count in (("val", 90), ("test", 110)):
        labels = (
            (rng.random((count, 2)) < 0.4).astype(np.float32) if task == "multilabel" else rng.normal(size=(count, 2))
        )
        ledgers[split] = (labels.astype(np.float32), numbers(labels.astype(np.float32), task, seed=count))
    options = {"classes": ("p", "q"), "task": task}
    run, _ = made_run(tmp_path / "run", ledgers, [], **options)
    rules = ("soft", "weighted", "greedy") if task == "multilabel" else ("mean", "median", "weighted", "greedy")
    stack = stack_of(ledgers["test"][1], "identity")
    for rule in rules:
        found = combine(run, capsys, "--rule", rule)
        assert (found["fit"]["temperature"] != 1) == (task == "multilabel")
        assert main(["combine", str(run.path), "--rule", rule]) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80
    if task == "regression":
        np.testing.assert_allclose(kept_predictions(run, "median"), np.median(stack, axis=0), atol=1e-6)
        labels, val = ledgers["val"][0], stack_of(ledgers["val"][1], "identity")
        weights = json.loads((run.path / "combined" / "weighted" / "rule.json").read_text())["fit"]["weights"]
        errors = ((val - labels) / labels.std(0)).reshape(3, -1)

        def squared(weights: np.ndarray) -> float:
            return float(((weights @ errors) ** 2).mean())

        fitted = squared(np.array(list(weights.values())))
        assert all(fitted <= squared(other) + 1e-6 for other in np.random.default_rng(0).dirichlet(np.ones(3), 200))
        assert main(["combine", str(run.path), "--rule", "hard"]) == 2
    assert main(["score", str(run.path), "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert {f"member/{name}" for name in MEMBERS} | set(rules) == {row["name"] for row in scores["rows"]}
    assert {rule["name"] for rule in scores["rules"]} == {"weighted", "greedy"}
    assert len(scores["temperatures"]) == (task == "multilabel")


def test_the_table_of_scores_has_a_row_for_each_rule_that_can_be_fitted(
    run: RunDir, folded: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["score", str(run.path), "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)
    rules = ["soft", "hard", "weighted", "greedy"]
    members = [f"member/{name}" for name in MEMBERS]
    names = [f"{name}{suffix}" for suffix in ("", "+tta") for name in (*members, *rules)]
    assert [row["name"] for row in scores["rows"]] == names
    combined = combine(run, capsys, "--rule", "greedy", "--temperature", "none")
    (greedy,) = (row for row in scores["rows"] if row["name"] == "greedy+tta")
    assert greedy["value"] == row(combined, "combined/greedy", "accuracy")["value"]
    assert greedy["log_loss"]["value"] == row(combined, "combined/greedy", "log_loss")["value"]
    with_temperature = combine(run, capsys, "--rule", "soft")
    (temperature,) = (item for item in scores["temperatures"] if item["name"] == "soft+tta")
    assert temperature["value"] == pytest.approx(with_temperature["fit"]["temperature"]) and temperature["on"] == "val"
    assert temperature["tempered"]["value"] == pytest.approx(
        row(with_temperature, "combined/soft", "log_loss")["value"]
    )
    assert temperature["difference"]["value"] == pytest.approx(
        temperature["tempered"]["value"] - temperature["log_loss"]["value"]
    )
    assert main(["score", str(folded.path)]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert " stack " in text and " stack+tta " in text
    assert "stack: logistic regression on out-of-fold predictions (400 samples)" in text
    assert "on val (120 samples)" in text and "temperature fitted on val, not applied in the table: soft" in text


def test_the_split_that_rules_are_fitted_on_has_no_fitted_rules(
    run: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["score", str(run.path), "--split", "val", "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert not scores["rules"] and not scores["temperatures"]
    assert not any("greedy" in row["name"] for row in scores["rows"])
    assert main(["score", str(run.path), "--split", "val"]) == 0
    assert "no weighted, greedy or temperature: rules are fitted on 'val'" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    "change", [{"evaluation": "of other weights"}, {"views": ("identity",)}], ids=["weights", "views"]
)
def test_a_stack_is_not_fitted_on_predictions_of_other_weights_or_views(
    folded: RunDir, change: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    views = {"views": change.get("views", ("identity", "tta"))}
    held_out = predictions(400, ("net", "other"), seed=3, **views)
    write_ledger(folded.predictions / "held-out.parquet", *held_out, evaluation=change.get("evaluation", "e"))
    assert main(["combine", str(folded.path), "--rule", "stack", "--views", "identity"]) == 2
    assert "with other weights or views than 'test': run `choral evaluate folded`" in " ".join(
        capsys.readouterr().err.split()
    )
    assert main(["score", str(folded.path)]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert (
        "no stack: " in text
        and "with other weights or views than 'test'" in text
        and " stack " not in text.split("no st")[0]
    )


def test_the_regression_table_fits_80_columns_with_all_names(tmp_path: Path) -> None:
    labels = np.random.default_rng(5).normal(size=(60, 2)).astype(np.float32)
    ledgers = {"test": (labels, numbers(labels, "regression"))}
    folder, config = made_run(tmp_path / "run", ledgers, task="regression", classes=("height", "width"))
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(render_combination(combine_run(folder, config, "test", CombinationRequest(rule="median"))))
    text = console.export_text()
    for target in ("height", "width"):
        for name in ("member/a", "plain mean", "median", "less member/a", "less plain mean"):
            assert re.search(rf"^ +{name} +RMSE {target} +[+-]?\d", text, re.MULTILINE), (name, target, text)
    assert all(len(line) <= 80 for line in text.splitlines())


def test_validation_predictions_alone_are_rejected(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["combine", str(run.path), "--rule", "soft", "--with-val", "theirs.csv"]) == 2
    assert "--with-val: requires --with" in capsys.readouterr().err
