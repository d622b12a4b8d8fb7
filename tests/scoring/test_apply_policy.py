"""Predictions of a policy for one image, by task, with and without calibration, and their text."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from choral.ensembles.rules import Combiner
from choral.inference.prediction_types import (
    ClassPrediction,
    MultilabelPrediction,
    Prediction,
    RegressionPrediction,
    unreadable_prediction,
)
from choral.scoring.apply_policy import apply_policy, build_default_policy, describe_policy
from choral.scoring.calibration_maps import CalibrationMap
from choral.scoring.policy import Conformal, Decision, PredictionPolicy

IMAGE = Path("a.png")


def members(*rows: list[float]) -> dict[str, np.ndarray]:
    """One row per member."""
    return {f"m{number}": np.array(row, np.float32) for number, row in enumerate(rows)}


def answer_image(policy: PredictionPolicy, image: Path, heard: dict[str, np.ndarray]) -> Prediction:
    """Return the prediction for one image from the predictions of each member."""
    by_member = np.stack([heard[name] for name in policy.members])[:, None]
    (answer,) = apply_policy(policy, [str(image)], by_member, policy.combine(by_member))
    return answer


def plain(task: str, classes: tuple[str, ...], count: int) -> PredictionPolicy:
    return build_default_policy(task, classes, [f"m{number}" for number in range(count)], ["identity"])


def test_class_prediction_with_member_votes() -> None:
    heard = members([0.75, 0.25], [0.25, 0.75], [1, 0])
    given = answer_image(plain("multiclass", ("cat", "dog"), 3), IMAGE, heard)
    assert isinstance(given, ClassPrediction) and given.label == "cat" and given.probability == pytest.approx(2 / 3)
    assert given.cells() == ("cat", "0.667", "m0: cat 0.750, m1: dog 0.750, m2: cat 1.000")
    keys = ["image", "label", "probability", "probabilities", "votes", "error"]
    assert list(json.loads(json.dumps(given.content()))) == keys  # nothing that was never asked for


def test_labels_above_one_half_most_probable_first() -> None:
    names = ("sun", "rain", "fog")
    given = answer_image(plain("multilabel", names, 2), IMAGE, members([0.5, 0.75, 0.0], [0.75, 0.875, 0.5]))
    assert isinstance(given, MultilabelPrediction)
    assert given.labels == {"rain": 0.8125, "sun": 0.625} and list(given.labels) == ["rain", "sun"]
    assert given.probabilities == {"sun": 0.625, "rain": 0.8125, "fog": 0.25}
    assert given.cells() == ("rain 0.812, sun 0.625", "m0: rain; m1: sun, rain")
    assert answer_image(plain("multilabel", names, 1), IMAGE, members([0, 0.5, 0])).cells() == ("none", "m0: none")


def test_regression_with_the_spread_over_members() -> None:
    given = answer_image(plain("regression", ("kg", "m"), 2), IMAGE, members([1, -8], [3, -8]))
    assert isinstance(given, RegressionPrediction)
    assert given.values == {"kg": 2, "m": -8} and given.spreads == {"kg": 1, "m": 0}
    assert given.cells() == ("kg 2 ± 1, m -8 ± 0", "m0: 1, -8; m1: 3, -8")


@pytest.mark.parametrize("task", ["multiclass", "multilabel", "regression"])
def test_unreadable_image_has_an_error_only(task: str) -> None:
    given = unreadable_prediction("a.png", task, "no image")
    assert (given.image, given.error) == ("a.png", "no image")
    assert not any(value for key, value in given.content().items() if key not in ("image", "error"))
    assert len(given.cells()) == len(given.headings)


def fitted() -> PredictionPolicy:
    """Two members, two views, weights for both, a temperature, sets, and costs."""
    return PredictionPolicy(
        of="weighted+tta",
        task="multiclass",
        classes=("a", "b", "c"),
        members=("m0", "m1"),
        views={"identity": 0.75, "hflip": 0.25},
        average="probabilities",
        rule=Combiner("weighted", "multiclass", (0.6, 0.4)),
        calibration=CalibrationMap("temperature", "multiclass", 2.0),
        conformal=Conformal("aps", 0.9, (0.5,), (40,)),
        decision=Decision("costs", costs=((0.0, 1.0, 1.0), (1.0, 0.0, 1.0), (9.0, 9.0, 0.0))),
        unsure_below=0.3,
        fitted_on={"split": "val", "samples": 40, "sha256": "0"},
        evaluation="e",
    )


def test_order_is_view_weights_member_weights_temperature_costs() -> None:
    rng = np.random.default_rng(0)
    stack = rng.dirichlet(np.ones(3), size=(2, 2, 5)).astype(np.float32)
    mean = 0.75 * stack[:, 0] + 0.25 * stack[:, 1]
    mixture = 0.6 * mean[0] + 0.4 * mean[1]
    rooted = np.sqrt(mixture) / np.sqrt(mixture).sum(axis=1, keepdims=True)
    found = fitted().predict(stack)
    np.testing.assert_allclose(found, rooted, atol=1e-6)
    expected = found @ np.array(fitted().decision.costs)
    assert fitted().decide(found).tolist() == expected.argmin(axis=1).tolist()
    geometric = replace(fitted(), average="geometric").average_views(stack)
    product = stack[:, 0] ** 0.75 * stack[:, 1] ** 0.25
    np.testing.assert_allclose(geometric, product / product.sum(axis=2, keepdims=True), atol=1e-6)


def test_description_of_a_calibrated_policy() -> None:
    heard = members([0.6, 0.3, 0.1], [0.5, 0.4, 0.1])
    given = answer_image(fitted(), IMAGE, heard)
    assert isinstance(given, ClassPrediction)
    # The costs say c, which is unlikely; the set of what is before half of the probability holds a and b.
    assert given.label == "c" and given.possible == ("a", "b") and given.unsure
    assert given.cells()[0] == "c (set: a, b) (unsure)"
    plainly = replace(fitted(), decision=Decision("argmax"), unsure_below=0.1)
    assert answer_image(plainly, IMAGE, heard).cells()[0] == "a or b"
    assert given.content()["possible"] == ("a", "b")
    assert describe_policy(fitted()) == (
        "weighted+tta; calibrated by temperature 2; least expected cost; sets of 90 % coverage (aps); unsure below 0.300; "
        "fitted on val (40 samples)"
    )


def test_multilabel_and_regression_with_sets_and_intervals() -> None:
    labels = replace(
        plain("multilabel", ("sun", "rain"), 1),
        conformal=Conformal("lac", 0.9, (0.8, 0.4), (9, 9)),
        decision=Decision("thresholds", {"sun": 0.9}, {"sun": "precision>=0.9"}),
    )
    given = answer_image(labels, IMAGE, members([0.85, 0.55]))
    assert isinstance(given, MultilabelPrediction) and given.possible == ("sun",)
    assert given.cells()[0] == "rain 0.550; perhaps sun"
    numbers = replace(
        plain("regression", ("kg", "m"), 1), conformal=Conformal("residual", 0.9, (0.5, math.inf), (9, 9))
    )
    given = answer_image(numbers, IMAGE, members([2, 3]))
    assert isinstance(given, RegressionPrediction) and given.intervals == {"kg": (1.5, 2.5), "m": None}
    assert given.cells()[0] == "kg 2 ± 0 [1.5, 2.5], m 3 ± 0"


@pytest.mark.parametrize("method", ["none", "vector", "isotonic"])
def test_json_round_trip(method: str) -> None:
    maps = {
        "none": CalibrationMap("none", "multiclass"),
        "vector": CalibrationMap("vector", "multiclass", weights=(1.0, 2.0, 3.0), biases=(0.0, 0.5, -0.5)),
        "isotonic": CalibrationMap("isotonic", "multiclass", knots=(((0.0, 1.0), (0.1, 0.9)),) * 3),
    }
    for policy in (
        replace(fitted(), calibration=maps[method]),
        replace(fitted(), conformal=Conformal("lac", 0.9, (0.5, math.inf, 0.1), (4, 5, 6)), calibration=maps[method]),
        replace(fitted(), conformal=None, unsure_below=None, decision=Decision("argmax"), calibration=maps[method]),
        replace(fitted(), decision=Decision("thresholds", {"b": 0.25}, {"b": "f1"}), calibration=maps[method]),
    ):
        assert PredictionPolicy.from_json(json.loads(json.dumps(policy.to_json(), allow_nan=False))) == policy
