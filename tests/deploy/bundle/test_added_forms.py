"""Forms that a bundle is given: written once, checked, measured, and asked about a whole split beside the run."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

import choral
from choral.cli import main
from choral.cli.workflow.export import export
from choral.core.errors import ChoralError, ConfigError, DataError
from choral.deploy.bundle import added_forms as added
from choral.deploy.bundle.added_forms import add_forms, check_formats
from choral.deploy.bundle.engine import EnsemblePredictions
from choral.deploy.bundle.policy_choice import PolicyRequest
from choral.deploy.bundle.read import read_bundle, update_bundle
from choral.deploy.bundle.split_predictions import compare_predictions, max_difference
from choral.deploy.bundle.verify import verify_bundle
from choral.deploy.bundle.verify_split import verify_split
from choral.runs.run_dir import RunDir
from made_bundles import QUIET, made_run
from made_ensembles import plain

FORMS = ["model.onnx", "model.pt2", "model-fp16.onnx", "model-int8.onnx"]


@pytest.fixture(scope="module")
def made(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A run, evaluated, whose bundle has every form."""
    folder = made_run(shards, tmp_path_factory.mktemp("forms"))
    # Of one member: each takes seconds to export.
    export(folder, folder.config(), PolicyRequest(members=("c",)), folder.path / "bundle", True, QUIET)
    add_forms(folder.path / "bundle", ["onnx", "pt2"], ["fp16", "int8"])
    return folder


def test_every_form_is_there_checked_and_measured(made: RunDir) -> None:
    bundle = read_bundle(made.path / "bundle")
    assert list(bundle.forms) == FORMS
    for name, facts in bundle.forms.items():
        assert facts["megabytes"] > 0 and (bundle.path / name).is_file()
        assert ("measured" in facts) == (facts["precision"] != "fp32")
    for name in FORMS[2:]:
        cost = bundle.forms[name]["measured"]
        assert (cost["split"], cost["n"], cost["metric"]) == ("val", 13, "accuracy")
        value, low, high = cost["difference"]
        assert value == pytest.approx(cost["value"] - cost["reference"]) and low <= value <= high
        assert 0 < cost["largest"] < 1 and 0 <= cost["same"] <= 13
    assert bundle.forms[FORMS[2]]["measured"]["largest"] < bundle.forms[FORMS[3]]["measured"]["largest"]
    verified = verify_bundle(bundle.path, "cpu")
    assert verified.passed and [check.form for check in verified.checks] == ["torch", *FORMS]
    assert FORMS[3] in (bundle.path / "README.md").read_text()


def test_what_was_not_measured_at_first_is_measured_later(made: RunDir, caplog: pytest.LogCaptureFixture) -> None:
    path = made.path / "bundle"
    forms = {name: dict(facts) for name, facts in read_bundle(path).forms.items()}
    cost = forms[FORMS[3]].pop("measured")
    update_bundle(path, {"forms": forms})
    add_forms(path, ["onnx"], ["int8"], str(made.path / "nowhere"))
    assert "give the shards with --data FOLDER" in caplog.text and "measured" not in read_bundle(path).forms[FORMS[3]]
    assert add_forms(path, ["onnx"], ["int8"], made.config().data.shards)[FORMS[3]]["measured"] == cost
    assert read_bundle(path).forms[FORMS[3]]["measured"] == cost


def test_all_forms_and_the_run_say_the_same_about_a_split(made: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    bundle, shards = made.path / "bundle", made.config().data.shards
    words = ["verify", str(bundle), "--split", "test", "--data", shards, "--run", str(made.path)]
    assert main([*words, "--device", "cpu", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["reference"], found["n"], found["why"], found["passed"]) == ("ledger", 11, "", True)
    rows = {row["form"]: row for row in found["rows"]}
    assert list(rows) == ["unfused", "torch", *FORMS]
    for name in ("unfused", "torch", *FORMS[:2]):
        assert rows[name]["exact"] and rows[name]["largest"] <= 1e-5 and rows[name]["same"] == 11, name
    assert not rows[FORMS[3]]["exact"] and rows[FORMS[3]]["largest"] > 1e-5


def test_without_its_run_a_bundle_is_held_against_its_own_networks(
    made: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)  # where there are no runs
    found = verify_split(made.path / "bundle", "val")
    assert found.reference == "torch" and "no such run" in found.why and found.passed
    assert [row.form for row in found.rows] == ["torch", *FORMS] and found.rows[0].largest == 0
    assert main(["verify", str(made.path / "bundle"), "--split", "test", "--tolerance", "1e-12"]) == 1
    shown = capsys.readouterr()
    assert "NOT" in shown.out and "lower" in shown.out
    assert "compared with the bundle's own models" in shown.err
    with pytest.raises(ConfigError, match="elsewhere: no such run"):
        verify_split(made.path / "bundle", "test", run="elsewhere")
    with pytest.raises(DataError, match="nowhere"):
        verify_split(made.path / "bundle", "test", data=str(tmp_path / "nowhere"))


def test_images_are_asked_through_a_form(made: RunDir) -> None:
    image = np.random.default_rng(0).integers(0, 256, (30, 20, 3), dtype=np.uint8)
    plainly = choral.load(made.path / "bundle", device="cpu").predict(image)
    for form in ("onnx", "pt2"):
        answer = choral.load(made.path / "bundle", form=form).predict(image)  # type: ignore[arg-type]
        assert answer.label == plainly.label  # type: ignore[union-attr]
        np.testing.assert_allclose(answer.probabilities, plainly.probabilities, atol=1e-6)  # type: ignore[union-attr,arg-type]


def test_what_is_there_is_not_written_again(
    made: RunDir, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delattr(added, "export_program")
    before = (made.path / "bundle" / "bundle.json").read_bytes()
    assert main(["export", str(made.path / "bundle"), "--format", "onnx,pt2", "--precision", "int8"]) == 0
    shown = capsys.readouterr().out
    assert "model-int8.onnx: int8" in shown and "accuracy on val (13 samples)" in shown
    assert (made.path / "bundle" / "bundle.json").read_bytes() == before


def test_a_form_that_says_something_else_is_not_kept(
    made: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(made.path / "bundle", tmp_path / "bundle")
    path = tmp_path / "bundle"
    bundle = read_bundle(path)
    for name in FORMS:
        (path / name).unlink()
    added.update_bundle(path, {"forms": {}})

    class Wrong:
        def predict_batch(self, images: list[np.ndarray]) -> EnsemblePredictions:
            count = len(images[0])
            return EnsemblePredictions(np.full((1, count, 3), 0.4, np.float32), np.full((count, 3), 0.4, np.float32))

    monkeypatch.setattr(added, "_write_files", lambda bundle, names, report: (bundle.path / names[0]).write_bytes(b"x"))
    monkeypatch.setattr(added, "open_form", lambda path: Wrong())
    with pytest.raises(ChoralError, match="predictions differ from the bundle"):
        add_forms(path, ["onnx"], [])
    assert not (path / "model.onnx").exists() and bundle.forms and not read_bundle(path).forms


@pytest.mark.parametrize(
    ("formats", "precisions", "message"),
    [
        (["onxx"], [], "--format: no format 'onxx'. Did you mean onnx?"),
        (["onnx"], ["int4"], "--precision: no 'int4'"),
        (["pt2"], ["fp16"], "--precision: is of ONNX files; add --format onnx"),
    ],
)
def test_what_there_is_not(formats: list[str], precisions: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        check_formats(formats, precisions)


def test_losses() -> None:
    policy = plain()
    labels = np.array([0, 1, 2, 1])
    sure = np.eye(3, dtype=np.float32)[labels]
    wrong = sure.copy()
    wrong[0] = [0.25, 0.75, 0]
    good, bad = (EnsemblePredictions(values[None], values) for values in (sure, wrong))
    ((name, loss),) = compare_predictions(policy, labels, {"bad": bad}, good)
    assert (name, loss.n, loss.same, loss.largest) == ("bad", 4, 3, 0.75)
    assert (loss.value, loss.reference, loss.difference[0], loss.worse) == (0.75, 1.0, -0.25, 0.25)
    assert loss.difference[1] <= -0.25 <= loss.difference[2] == 0
    numbers = EnsemblePredictions(np.full((1, 4, 3), 8, np.float32), np.full((4, 3), 8, np.float32))
    near = EnsemblePredictions(numbers.by_member, numbers.combined + 2)
    assert max_difference(plain("regression"), near, numbers) == (0.25, None)
