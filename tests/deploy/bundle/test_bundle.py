"""The bundle: what is in it, that it answers as the run does, and that a damaged one is found out."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

import choral
from choral.cli import main
from choral.cli.workflow.export import export, export_stage, exported_config
from choral.core.errors import ChoralError, ConfigError, DataError
from choral.core.files import atomic_folder
from choral.data.shards.index import Dataset, Index
from choral.data.shards.store import LocalStore
from choral.deploy.bundle import verify as verify_module
from choral.deploy.bundle.golden import read_golden
from choral.deploy.bundle.policy_choice import PolicyRequest, choose_policy
from choral.deploy.bundle.predictor import Predictor
from choral.deploy.bundle.read import (
    BUNDLE_FILE,
    CHECKSUMS_FILE,
    is_bundle,
    read_bundle,
    update_bundle,
    write_checksums,
)
from choral.deploy.bundle.verify import verify_bundle
from choral.inference.ledger import Ledger
from choral.inference.prediction_types import ClassPrediction, MultilabelPrediction, RegressionPrediction
from choral.inference.run_models import find_trained_models
from choral.runs.run_dir import RunDir
from choral.scoring.calibrate import CalibrationRequest, calibrate_run
from choral.scoring.calibration_maps import CalibrationMap
from choral.scoring.policy import write_policy
from made_bundles import QUIET, labelled, made_run
from made_members import made_members


@pytest.fixture(scope="module")
def made(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return made_run(shards, tmp_path_factory.mktemp("made"))


@pytest.fixture
def folder(made: RunDir, tmp_path: Path) -> RunDir:
    """The run's folder, for this test alone."""
    shutil.copytree(made.path, tmp_path / "cells")
    return RunDir(tmp_path / "cells")


@pytest.fixture
def bundle(folder: RunDir) -> Path:
    return folder.path / "bundle"


def images_of(config_shards: str, split: str) -> dict[str, bytes]:
    """Return the encoded images of a split by key."""
    dataset = Dataset.open(config_shards)
    index, store = Index.open(dataset, split), LocalStore(dataset)
    records = [index.row(row) for row in range(len(index))]
    return {one.key: store.read(one.shard, one.offset, one.length) for one in records}


def test_a_bundle_answers_as_the_ledger_says(folder: RunDir) -> None:
    config = folder.config()
    out = folder.path / "bundle"
    predictor = choral.load(out, device="cpu")
    assert all(member.folded for member in read_bundle(out).members)
    images = images_of(config.data.shards, "test")
    ledger = Ledger.open(folder.predictions / "test.parquet")
    answers = predictor.predict([images[key] for key in ledger.keys], batch_size=4)
    stack = np.stack([ledger.predictions(name, "tta") for name in predictor.members])
    expected = predictor.policy.combine(stack)
    found = np.array([answer.probabilities for answer in answers if isinstance(answer, ClassPrediction)])
    assert np.abs(found - expected).max() <= 1e-5
    assert [answer.label for answer in answers if isinstance(answer, ClassPrediction)] == [
        ledger.classes[number] for number in predictor.policy.decide(expected)
    ]
    assert all(isinstance(answer, ClassPrediction) and answer.possible is not None for answer in answers), (
        "conformal sets"
    )
    score = read_bundle(out).content["scores"]["test"]
    assert score["n"] == 11 and not score["chosen_on_it"]
    right = np.mean(predictor.policy.decide(expected) == ledger.labels)
    assert score["metrics"]["accuracy"]["value"] == pytest.approx(right)


def test_what_a_steep_calibration_makes_of_rounding_is_allowed(folder: RunDir, tmp_path: Path) -> None:
    config = folder.config()
    models, _ = find_trained_models(folder, config)
    policy, _ = choose_policy(folder, config, models, PolicyRequest())
    assert policy.calibration.steepness == 1
    steps = ((0.0, 0.3333, 0.33331, 1.0), (0.0, 0.2, 0.202, 1.0))
    steep = CalibrationMap("isotonic", "multiclass", knots=(steps,) * 3)
    assert steep.steepness == pytest.approx(200)
    assert replace(steep, knots=(((0.0, 0.5, 0.5, 1.0), (0.0, 0.1, 0.9, 1.0)),)).steepness == 1000
    write_policy(folder, replace(policy, calibration=steep, evaluation=policy.evaluation))
    export(folder, config, PolicyRequest(), tmp_path / "steep", False, QUIET)
    assert verify_bundle(tmp_path / "steep", "cpu").checks[0].tolerance == pytest.approx(2e-3)


def test_too_few_samples_to_calibrate_on(folder: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("choral.deploy.bundle.policy_choice.MIN_SAMPLES", 14)
    config = folder.config()
    models, _ = find_trained_models(folder, config)
    policy, source = choose_policy(folder, config, models, PolicyRequest())
    assert source == "not calibrated: 'val' has 13 samples, and 14 are needed at least"
    assert policy.calibration.method == "none" and policy.conformal is None


def test_every_damaged_byte_is_found(bundle: Path, tmp_path: Path) -> None:
    files = [path.relative_to(bundle) for path in sorted(bundle.rglob("*")) if path.is_file()]
    assert {BUNDLE_FILE, CHECKSUMS_FILE, "README.md", "golden/expected.safetensors"} <= {
        path.as_posix() for path in files
    }
    rng = np.random.default_rng(0)
    for name in files:
        path = bundle / name
        content = path.read_bytes()
        for place in {0, len(content) - 1, *rng.integers(0, len(content), 6).tolist()}:
            damaged = bytearray(content)
            damaged[place] ^= 1 << int(rng.integers(0, 8))
            path.write_bytes(damaged)
            with pytest.raises(ChoralError) as caught:
                choral.load(bundle)
            if name.name != CHECKSUMS_FILE:
                assert name.as_posix() in str(caught.value)
            assert main(["verify", str(bundle)]) == 1
        path.write_bytes(content)
        path.rename(tmp_path / "elsewhere")
        with pytest.raises(ChoralError):
            read_bundle(bundle)
        (tmp_path / "elsewhere").rename(path)
    assert read_bundle(bundle).classes


def test_sha256sum_reads_the_sums(bundle: Path) -> None:
    assert subprocess.run(["sha256sum", "--quiet", "-c", CHECKSUMS_FILE], cwd=bundle, check=False).returncode == 0


def test_nothing_in_a_bundle_can_lead_out_of_it(bundle: Path) -> None:
    (bundle / CHECKSUMS_FILE).write_text(f"{'0' * 64}  ../toy.yaml\n{'0' * 64}  {BUNDLE_FILE}\n")
    with pytest.raises(DataError, match="is damaged"):
        read_bundle(bundle)
    content = json.loads((bundle / BUNDLE_FILE).read_text())
    update_bundle(bundle, {"members": [{**member, "folder": "../../other"} for member in content["members"]]})
    with pytest.raises(DataError, match="a member's folder"):
        read_bundle(bundle)
    update_bundle(bundle, {"members": content["members"], "format": "choral-bundle-0"})
    with pytest.raises(DataError, match="format 'choral-bundle-0', expected 'choral-bundle-1'"):
        read_bundle(bundle)


def test_sums_that_do_not_cover_the_weights_are_refused(bundle: Path) -> None:
    lines = (bundle / CHECKSUMS_FILE).read_text().splitlines(keepends=True)
    (bundle / CHECKSUMS_FILE).write_text("".join(line for line in lines if "b/model.safetensors" not in line))
    with pytest.raises(DataError, match="does not list members/b/model.safetensors"):
        read_bundle(bundle)


def test_whoever_stops_a_change_leaves_a_bundle_that_can_be_read(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: object) -> str:
        raise KeyboardInterrupt

    before = read_bundle(bundle).content
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("choral.core.checksums.compute_sha256", stopped)
        update_bundle(bundle, {"name": "other"})
    assert read_bundle(bundle).content == before
    renamed, replace = [], Path.replace

    def once(path: Path, target: Path) -> Path:
        renamed.append(target)
        return stopped() if len(renamed) == 2 else replace(path, target)  # type: ignore[return-value]

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt), atomic_folder(bundle) as aside:
        (aside / "half").touch()
        patch.setattr(Path, "replace", once)
    assert read_bundle(bundle).content == before and len(list(bundle.parent.glob(".bundle*"))) == 0
    update_bundle(bundle, {"name": "other"})
    assert read_bundle(bundle).name == "other" and (bundle / "README.md").read_text().startswith("# other")


def test_what_file_managers_leave_does_no_harm(bundle: Path) -> None:
    for name in (".DS_Store", "Thumbs.db"):
        (bundle / "golden" / name).write_bytes(b"icons")
    assert main(["verify", str(bundle)]) == 0


def test_verify_tells_other_weights_and_other_pixels(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", str(bundle)]) == 0
    assert "as exported" in capsys.readouterr().out
    weights = bundle / "members" / "b" / "model.safetensors"
    tensors = load_file(weights)
    name = next(name for name in tensors if name.endswith("fc.weight"))
    save_file({**tensors, name: tensors[name] * np.float32(1.05)}, weights)
    write_checksums(bundle)
    verified = verify_bundle(bundle)
    assert not verified.passed and verified.pixels == 0 and verified.checks[0].difference > 1e-5
    save_file(tensors, weights)
    write_checksums(bundle)
    plain = verify_module.Predictor.prepare

    def darker(self: verify_module.Predictor, image: np.ndarray) -> tuple[np.ndarray, ...]:
        return tuple(part // 2 for part in plain(self, image))

    monkeypatch.setattr(verify_module.Predictor, "prepare", darker)
    verified = verify_bundle(bundle)
    assert not verified.passed and verified.pixels > 1 and verified.checks[0].passed, "the networks are as they were"
    assert main(["verify", str(bundle)]) == 1 and "pixels NOT as exported" in " ".join(capsys.readouterr().out.split())


def test_what_is_wanted_is_fitted_on_validation(folder: RunDir) -> None:
    config = folder.config()
    models, _ = find_trained_models(folder, config)

    def chosen(**wanted: object) -> tuple[object, str]:
        return choose_policy(folder, config, models, PolicyRequest(**wanted))  # type: ignore[arg-type]

    policy, source = choose_policy(folder, config, models, PolicyRequest())
    assert policy.calibration.method == "temperature" and policy.conformal is not None
    assert policy.fitted_on["split"] == "val" and "calibrated on 'val'" in source
    report = calibrate_run(folder, config, "test", CalibrationRequest())
    kept, source = choose_policy(folder, config, models, PolicyRequest())
    assert report["answer"] == kept.to_json() and "answer.json" in source
    assert kept.calibration == policy.calibration and kept.conformal == policy.conformal
    weighted, _ = choose_policy(folder, config, models, PolicyRequest("weighted", ("c", "a"), "identity"))
    assert weighted.members == ("a", "c") and dict(weighted.views) == {"identity": 1.0}
    assert weighted.rule.rule == "weighted" and len(weighted.rule.weights) == 2
    plain, source = choose_policy(folder, config, models, PolicyRequest(calibrated=False))
    assert plain.calibration.method == "none" and plain.conformal is None and not plain.fitted_on
    hard, source = choose_policy(folder, config, models, PolicyRequest("hard"))
    assert hard.rule.rule == "hard" and "no probabilities" in source
    with pytest.raises(ConfigError, match="no member 'd'"):
        chosen(members=("d",))
    with pytest.raises(ConfigError, match="holds nothing under hflip"):
        chosen(views="hflip")
    (folder.predictions / "val.parquet").unlink()
    with pytest.raises(ConfigError, match="has to be fitted, and 'val' is not evaluated"):
        chosen(rule="greedy")
    bare, source = choose_policy(folder, config, models, PolicyRequest("geometric", ("b",), "hflip"))
    assert (bare.members, tuple(bare.views), bare.rule.rule) == (("b",), ("hflip",), "geometric")
    assert "'val' is not evaluated" in source


def test_a_bundle_of_a_run_that_was_never_evaluated(folder: RunDir, tmp_path: Path) -> None:
    shutil.rmtree(folder.predictions)
    config = exported_config(folder.config(), golden=0)
    out = tmp_path / "bundle"
    report = export(folder, config, PolicyRequest(), out, False, QUIET)
    assert report["passed"] and read_bundle(out).content["scores"] == {}
    golden = read_golden(out, 2)
    assert len(golden.files) == 4 and golden.predicted.by_member.shape == (3, 4, 3)
    predictor = choral.load(out)
    assert isinstance(predictor.predict(out / "golden" / golden.files[0]), ClassPrediction)


def test_images_of_every_kind_are_answered_alike(bundle: Path) -> None:
    predictor = choral.load(bundle)
    path = bundle / "golden" / "00.png"
    pixels = np.asarray(Image.open(path).convert("RGB"))
    kinds = [str(path), path, path.read_bytes(), pixels, Image.open(path)]
    answers = predictor.predict(kinds)
    assert {answer.probabilities for answer in answers if isinstance(answer, ClassPrediction)} == {
        answers[0].probabilities  # type: ignore[union-attr]
    }
    assert [answer.image for answer in answers] == [str(path), str(path), "", "", ""]
    grey = predictor.predict(np.full((9, 7), 80, np.uint8))
    assert isinstance(grey, ClassPrediction) and sum(grey.probabilities) == pytest.approx(1)
    turned = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(turned, "PNG", exif=exif)
    assert np.array_equal(predictor.decode(turned.getvalue()), predictor.decode(Image.open(turned)))
    for wrong, message in (
        (np.zeros((4, 4), np.float32), "dtype float32 and shape"),
        (np.zeros((4, 4, 4), np.uint8), "expected uint8"),
        (b"text", "not an image"),
        (3, "int: expected a path"),
        (bundle / "none.png", "none.png: No such file"),
    ):
        with pytest.raises(DataError, match=message):
            predictor.predict(wrong)  # type: ignore[call-overload]


def test_several_threads_may_ask(bundle: Path) -> None:
    predictor = choral.load(bundle)
    images = [np.random.default_rng(seed).integers(0, 256, (20, 30, 3), dtype=np.uint8) for seed in range(12)]
    alone = predictor.predict(images, batch_size=1)
    found: dict[int, object] = {}

    def predict_batch(number: int) -> None:
        found[number] = predictor.predict(images[number])

    threads = [threading.Thread(target=predict_batch, args=(number,)) for number in range(len(images))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[number] for number in range(len(images))] == alone


@pytest.mark.parametrize("task", ["multilabel", "regression"])
def test_other_tasks(task: str, tmp_path: Path) -> None:
    config = labelled(tmp_path, task)
    folder = made_members(config, tmp_path / "run")
    out = tmp_path / "bundle"
    assert export(folder, config, PolicyRequest(), out, False, QUIET)["passed"]
    answer = choral.load(out).predict(out / "golden" / read_golden(out, 1).files[0])
    assert isinstance(answer, MultilabelPrediction if task == "multilabel" else RegressionPrediction)


def test_a_place_that_is_taken(folder: RunDir, bundle: Path, tmp_path: Path) -> None:
    config = folder.config()
    with pytest.raises(ConfigError, match="--force replaces it"):
        export(folder, config, PolicyRequest(), bundle, False, QUIET)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter").touch()
    with pytest.raises(ConfigError, match="is not a bundle; choose another"):
        export(folder, config, PolicyRequest(), tmp_path / "mine", True, QUIET)
    before = (bundle / CHECKSUMS_FILE).read_text()
    export(folder, config, PolicyRequest(members=("a",)), bundle, True, QUIET)
    assert read_bundle(bundle).policy.members == ("a",) and (bundle / CHECKSUMS_FILE).read_text() != before
    assert not list(tmp_path.glob("cells/.bundle*")), "nothing is left beside"


def test_a_place_that_is_a_link(folder: RunDir, bundle: Path, tmp_path: Path) -> None:
    link = tmp_path / "latest"
    link.symlink_to(bundle)
    export(folder, folder.config(), PolicyRequest(members=("a",)), link, True, QUIET)
    assert link.is_symlink() and read_bundle(bundle).policy.members == ("a",)


def test_a_full_disk_leaves_what_was_there(folder: RunDir, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("choral.deploy.bundle.timm_folder.save_file", full)
    before = (bundle / CHECKSUMS_FILE).read_text()
    with pytest.raises(ChoralError, match="cannot be written: .*No space left"):
        export(folder, folder.config(), PolicyRequest(members=("a",)), bundle, True, QUIET)
    assert main(["export", str(folder.path), "--hub-folder", str(folder.path / "hub")]) == 1
    assert (bundle / CHECKSUMS_FILE).read_text() == before and not list(folder.path.glob(".*.tmp"))


def test_images_that_cannot_be_read_are_not_golden(
    folder: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[object] = []

    def decode(self: Predictor, image: bytes) -> np.ndarray:
        read.append(image)
        if len(read) == 1:
            raise DataError("cut short")
        return plain(self, image)

    plain = Predictor.decode
    monkeypatch.setattr(Predictor, "decode", decode)
    report = export(folder, folder.config(), PolicyRequest(members=("a",)), tmp_path / "bundle", False, QUIET)
    assert report["samples"] == 3 and (tmp_path / "bundle" / "golden" / "00.png").read_bytes() == read[1]


def test_the_stage_leaves_what_is_there(folder: RunDir, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inode = (bundle / BUNDLE_FILE).stat().st_ino
    assert export_stage(folder, folder.config(), QUIET) == bundle and (bundle / BUNDLE_FILE).stat().st_ino == inode
    calibrate_run(folder, folder.config(), "test", CalibrationRequest(method="none"))
    export_stage(folder, folder.config(), QUIET)
    assert read_bundle(bundle).policy.calibration.method == "none", "the run answers otherwise since"
    (bundle / "README.md").write_text("damaged")
    config = folder.config()
    config = config.replace(export=config.export.replace(data_licence="CC0-1.0", formats=("pt2",)))
    added: list[object] = []
    monkeypatch.setattr("choral.cli.workflow.export.add_forms", lambda *words: added.append(words))
    export_stage(folder, folder.config(), QUIET)
    assert read_bundle(bundle).classes and not added, "the damaged one was written again"
    export_stage(folder, config, QUIET)
    assert read_bundle(bundle).content["licences"]["data"] == "CC0-1.0" and added == [(bundle, ("pt2",), (), "", QUIET)]


def test_networks_that_fuse_to_something_else_are_not_exported(
    folder: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = folder.config()
    monkeypatch.setattr("choral.deploy.bundle.write.find_foldable", lambda network, example: [])
    monkeypatch.setattr(
        "choral.deploy.bundle.write.fold", lambda network, pairs: network.get_classifier().weight.data.mul_(1.01)
    )
    with pytest.raises(ChoralError, match="predictions with folded BatchNorm differ"):
        export(folder, config, PolicyRequest(), tmp_path / "bundle", False, QUIET)
    assert not is_bundle(tmp_path / "bundle") and not list(tmp_path.glob(".bundle*"))


def test_the_verbs(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(bundle)
    run_folder = str(tmp_path / "cells")
    assert main(["export", run_folder, "--members", "a,b", "--rule", "hard", "--golden", "2", "--json"]) == 0
    said = capsys.readouterr()
    report = json.loads(said.out)
    assert "use of this test split" in said.err, "the card has test metrics"
    assert report["members"] == ["a", "b"] and report["samples"] == 2 and report["passed"]
    assert main(["verify", report["bundle"], "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["checks"][0]["same_decisions"]
    assert main(["export", run_folder, "--golden", "1000"]) == 2
    assert main(["verify", str(tmp_path)]) == 2
    assert "no bundle" in capsys.readouterr().err
    for words, message in (
        (["export", report["bundle"]], "is a bundle already"),
        (["export", report["bundle"], "out", "--format", "pt2", "--golden", "0"], "OUT, --golden cannot be combined"),
        (["export", run_folder, "--hub-folder", "hub", "--data", "elsewhere"], "--data cannot be combined"),
        (["export", run_folder, "--format", "pt2", "--data", "elsewhere"], "only used to measure --precision"),
        (["verify", report["bundle"], "--tolerance", "nan"], "expected a positive number"),
        (["verify", report["bundle"], "--device", "meta"], "expected auto, cpu, cuda"),
    ):
        assert main(words) == 2
        assert message in " ".join(capsys.readouterr().err.split())
