"""Curves of predictions on perturbed images."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest

from choral.analysis.probe_curves import ProbePredictions, compute_curves, read_curves, read_probe_predictions
from choral.analysis.probes.families import (
    FAMILIES,
    FAMILY_BY_NAME,
    IDENTITY,
    Family,
    Probe,
    augment_settings,
    parse_families,
)
from choral.config import AugmentConfig
from choral.config.files import load_config
from choral.core.errors import ConfigError
from choral.inference.ledger import Ledger, LedgerMeta, build_ledger_table, feature_column_name, merge_parts, write_part
from choral.metrics.multiple_comparisons import holm
from made_probes import made_probes
from made_runs import made_run, predictions


def test_curves(tmp_path: Path) -> None:
    labels, columns = predictions(400)
    run, config = made_run(tmp_path / "run", {"val": (labels, columns)})
    assert read_curves(run, config, "val") is None and read_probe_predictions(run, config, "val") is None
    made_probes(run, "val", labels, {IDENTITY: 0.1, "rotation@30": 0.2, "rotation@-30": 0.4, "rotation@60": 0.5})
    curves = read_curves(run, config, "val")
    assert curves is not None
    assert (curves.predictor, curves.metric, curves.n, curves.total) == ("soft", "accuracy", 400, 400)
    assert curves.evaluation == "e" and curves.higher_is_better and len(curves.curves) == len(FAMILIES)
    rng = np.random.default_rng(0)
    hardness = rng.random(400)
    right = {share: (hardness >= share).mean() for share in (0.1, 0.2, 0.4, 0.5)}
    assert curves.unperturbed["value"] == pytest.approx(right[0.1])
    rotation = curves.curve("rotation")
    assert rotation is not None and rotation.key == "rotate" and rotation.unit == "degrees"
    assert [point.strength for point in rotation.points] == [10, 20, 30, 45, 60]
    at_30 = rotation.points[2]
    assert at_30.value == pytest.approx((right[0.2] + right[0.4]) / 2)  # both directions count alike
    assert at_30.drop == pytest.approx(right[0.1] - at_30.value)
    assert at_30.drop_low < at_30.drop < at_30.drop_high and at_30.drop_low > 0.1
    assert at_30.drop_high - at_30.drop_low < 2 * (at_30.high - at_30.low)  # paired: narrower than of independent ones
    assert rotation.worst.strength in (30, 60) and rotation.worst.p_adjusted < 1e-6
    assert curves.comparisons == sum(len(family.strengths) for family in FAMILIES)
    assert curves.of(["blur"]).curves == (curves.curve("blur"),) and curves.of([]) == curves
    assert curves.of(["blur"]).comparisons == curves.comparisons
    untouched = curves.curve("blur")
    assert untouched is not None
    for point in untouched.points:
        assert (point.drop, point.drop_low, point.drop_high, point.p, point.p_adjusted) == (0, 0, 0, 1, 1)
    content = json.loads(json.dumps(curves.to_json(), allow_nan=False))
    assert content["curves"][2]["points"][2]["value"] == at_30.value


def test_p_values_are_those_of_the_exact_test(tmp_path: Path) -> None:
    """Of few samples that changed sides, an interval by drawing them again promises too much."""
    labels = np.zeros(100, dtype=np.int64)
    run, _ = made_run(tmp_path / "run", {"val": predictions(100)})
    hardness = np.sort(np.random.default_rng(0).random(100))
    ledger = made_probes(
        run, "val", labels, {IDENTITY: hardness[10], "noise@0.1": hardness[16]}, parse_families(["noise"])
    )
    (curve,) = compute_curves(ProbePredictions(ledger), "run").curves
    at = curve.points[1]
    assert at.drop == pytest.approx(0.06) and at.p == pytest.approx(binomtest(0, 6).pvalue)
    assert at.p_adjusted == pytest.approx(3 * at.p) and curve.points[0].p_adjusted == 1


def test_probes_of_other_networks_are_none(tmp_path: Path) -> None:
    labels, columns = predictions(30)
    run, config = made_run(tmp_path / "run", {"val": (labels, columns)})
    made_probes(run, "val", labels, {IDENTITY: 0.1}, parse_families(["hflip"]), evaluation="other")
    assert read_curves(run, config, "val") is None
    made_probes(run, "val", labels, {IDENTITY: 0.1}, parse_families(["hflip"]))
    assert read_curves(run, config, "val") is not None
    path = run.path / "probes" / "val.parquet"
    path.write_bytes(path.read_bytes()[:100])
    assert read_curves(run, config, "val") is None


def test_features_and_predictions_are_read_by_probe(tmp_path: Path) -> None:
    labels, columns = predictions(20)
    run, config = made_run(tmp_path / "run", {"val": (labels, columns)})
    turned = np.random.default_rng(5).normal(size=(20, 64)).astype(np.float32)
    made_probes(run, "val", labels, {IDENTITY: 0, "hflip": 1}, parse_families(["hflip"]), features={"hflip@1": turned})
    probed = read_probe_predictions(run, config, "val")
    assert probed is not None and probed.probes == (Probe("hflip", 1),) == probed.of("hflip")
    assert np.array_equal(probed.features(probed.probes[0]), turned.astype(np.float16).astype(np.float32))
    assert not np.array_equal(probed.features(None), probed.features(probed.probes[0]))
    assert (probed.predictions(None).argmax(1) == labels).all()
    assert (probed.predictions(probed.probes[0]).argmax(1) != labels).all()


@pytest.mark.parametrize("task", ["multilabel", "regression"])
def test_other_tasks(tmp_path: Path, task: str) -> None:
    """Drops are above 0 where it gets worse, of RMSE as of average precision; directions are averaged."""
    rng = np.random.default_rng(1)
    labels = (rng.random((80, 2)) < 0.4).astype(np.float32) if task == "multilabel" else rng.normal(size=(80, 2))
    run, _ = made_run(tmp_path / "run", {"val": predictions(80)})
    names = [IDENTITY, *(probe.name for probe in FAMILY_BY_NAME["rotation"].probes)]
    spread = {"identity": 0.2, "rotation@30": 0.5, "rotation@-30": 0.9}
    said = {}
    for name in names:
        values = labels + np.random.default_rng(2).normal(0, spread.get(name, 0.2), labels.shape)
        said["soft", name] = (np.clip(values, 0, 1) if task == "multilabel" else values).astype(np.float32)
        said["soft", feature_column_name(name)] = np.zeros((80, 3), np.float32)
    meta = LedgerMeta(("p", "q"), ("soft",), tuple(names), "val", "d", "e-p", task=task, features=3)
    keys = [f"{number:02d}" for number in range(80)]
    write_part(tmp_path / "parts", 0, 1, build_ledger_table(meta, keys, labels.astype(np.float32), said))
    merge_parts(tmp_path / "parts", 1, keys, run.path / "probes" / "val.parquet", meta)
    curves = compute_curves(ProbePredictions(Ledger.open(run.path / "probes" / "val.parquet")), "run")
    assert curves.metric == {"multilabel": "mean_ap", "regression": "rmse"}[task]
    assert curves.higher_is_better == (task == "multilabel")
    points = curves.curves[0].points
    assert points[2].drop_low > 0 and points[0].drop == 0 == points[4].drop
    if task == "regression":
        rmse = [np.sqrt(((said["soft", f"rotation@{sign}30"] - labels) ** 2).mean(0)).mean() for sign in ("", "-")]
        assert points[2].value == pytest.approx(np.mean(rmse), rel=1e-6)
        assert points[2].drop == pytest.approx(points[2].value - curves.unperturbed["value"])


def test_a_single_sample_is_no_evidence(tmp_path: Path) -> None:
    """All draws of one sample are the same: its interval has no width, which is not to be taken for certainty."""
    run, _ = made_run(tmp_path / "run", {"val": predictions(1)})
    names = (IDENTITY, "blur@1", "blur@2", "blur@3", "blur@5")
    said = {("mean", name): np.full((1, 1), place, np.float32) for place, name in enumerate(names)}
    said |= {("mean", feature_column_name(name)): np.zeros((1, 3), np.float32) for name in names}
    meta = LedgerMeta(("size",), ("mean",), names, "val", "d", "e-p", task="regression", features=3)
    write_part(tmp_path / "parts", 0, 1, build_ledger_table(meta, ["a"], np.zeros((1, 1), np.float32), said))
    merge_parts(tmp_path / "parts", 1, ["a"], run.path / "probes" / "val.parquet", meta)
    points = compute_curves(ProbePredictions(Ledger.open(run.path / "probes" / "val.parquet")), "run").curves[0].points
    assert [point.drop for point in points] == [1, 2, 3, 4]
    assert {point.p_adjusted for point in points} == {1.0}


def test_holm() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.02, 0.02], comparisons=1) == [0.02, 0.02] and holm([]) == [] and holm([0.9, 0.8]) == [1.0, 1.0]


def test_names() -> None:
    assert Probe("rotation", 30, -1).name == "rotation@-30" and Probe("smaller", 0.35).name == "smaller@0.35"
    assert [family.name for family in parse_families(["hflip", "smaller"])] == ["smaller", "hflip"]
    with pytest.raises(ConfigError, match=r"no family 'rotated'. Did you mean rotation\? Families: smaller, "):
        parse_families(["rotated"])
    assert len({family.name for family in FAMILIES}) == len(FAMILIES)
    assert all(tuple(sorted(family.strengths)) == family.strengths for family in FAMILIES)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_every_strength_is_one_of_augment(family: Family, tmp_path: Path) -> None:
    """What a curve translates into is a config that is valid, and changes something."""
    (tmp_path / "base.yaml").write_text("data: {shards: nowhere}\naugment: {preset: none}\n")
    for strength in family.strengths:
        keys = augment_settings(family.name, strength)
        assert bool(keys) == bool(family.key) and (not keys or family.key in keys)
        config = load_config(
            tmp_path / "base.yaml", [f"augment.{key}={json.dumps(value)}" for key, value in keys.items()]
        )
        default = load_config(tmp_path / "base.yaml").augment
        assert isinstance(config.augment, AugmentConfig) and (config.augment != default) == bool(keys)
