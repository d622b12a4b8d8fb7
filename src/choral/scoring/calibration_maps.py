"""Calibration maps from combined probabilities to probabilities that match observed frequencies, fitted on validation data.

They are fitted after averaging members and views, because an average of calibrated members is underconfident. Methods are
compared on samples that the map was not fitted to (`cross_fit`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from choral.core.errors import DataError
from choral.data.shards.splits import hash_keys
from choral.ensembles.rules import apply_temperature, log_scores, probabilities_from_scores
from choral.ensembles.temperature import TemperatureFitter

METHODS = ("none", "temperature", "vector", "isotonic")
FOLDS = 5
MIN_SAMPLES = 2 * FOLDS
"""Fewest samples that a map is fitted on."""
_CHUNK = 1 << 20  # numbers that are in memory together


@dataclass(frozen=True)
class CalibrationMap:
    """A fitted map.

    Attributes:
        method: one of `METHODS`.
        task: multiclass or multilabel; regression only has "none".
        temperature: divisor of log probabilities (multilabel: of logits).
        weights, biases: (classes,) factors and offsets of log probabilities or logits; method vector.
        knots: for each class, increasing probabilities before and after the map, linear in between; method isotonic.
    """

    method: str
    task: str
    temperature: float = 1.0
    weights: tuple[float, ...] = ()
    biases: tuple[float, ...] = ()
    knots: tuple[tuple[tuple[float, ...], tuple[float, ...]], ...] = ()

    def __call__(self, predictions: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the calibrated predictions of (n, classes) float32 predictions, of the same shape and type."""
        if self.method == "temperature":
            return apply_temperature(predictions, self.temperature, self.task)
        if self.method == "vector":
            weights, biases = np.array(self.weights, np.float32), np.array(self.biases, np.float32)
            return probabilities_from_scores(log_scores(predictions, self.task) * weights + biases, self.task)
        if self.method == "isotonic":
            mapped = np.empty(predictions.shape)
            for column, (before, after) in enumerate(self.knots):
                mapped[:, column] = np.interp(predictions[:, column], before, after)
            if self.task == "multiclass":
                mapped /= mapped.sum(axis=1, keepdims=True)
            return mapped.astype(np.float32)
        return predictions

    @property
    def steepness(self) -> float:
        """The largest slope of the map, from 1 to 1000; 1 for smooth methods."""
        slopes = [1.0]
        for before, after in self.knots:
            widths = np.maximum(np.diff(before), 1e-12)
            slopes += (np.diff(after) / widths).tolist()
        return min(max(slopes), 1000.0)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON for `from_json`."""
        parameters: dict[str, dict[str, Any]] = {
            "none": {},
            "temperature": {"temperature": self.temperature},
            "vector": {"weights": list(self.weights), "biases": list(self.biases)},
            "isotonic": {"knots": [[list(part) for part in pair] for pair in self.knots]},
        }
        return {"method": self.method, **parameters[self.method]}

    @classmethod
    def from_json(cls, content: Mapping[str, Any], task: str) -> CalibrationMap:
        """Read the result of `to_json`; raises ValueError, KeyError or TypeError on anything else."""
        if content["method"] not in METHODS:
            raise ValueError(f"calibration {content['method']!r}")
        return cls(
            content["method"],
            task,
            float(content.get("temperature", 1.0)),
            tuple(map(float, content.get("weights", ()))),
            tuple(map(float, content.get("biases", ()))),
            tuple((tuple(map(float, x)), tuple(map(float, y))) for x, y in content.get("knots", ())),
        )


def fit_calibration_map(
    method: str, task: str, labels: NDArray[Any], predictions: NDArray[np.float32]
) -> CalibrationMap:
    """Return a map fitted to labelled samples.

    Args:
        method: temperature: one number (Guo et al. 2017, https://arxiv.org/abs/1706.04599). vector: a weight and a bias per
            class (same paper), regularized towards the temperature with the weight of one sample; for multilabel this is
            Platt scaling of each label. isotonic: an increasing function per class, one against the rest (Zadrozny and Elkan
            2002, https://doi.org/10.1145/775047.775151), normalized to a sum of 1; it can map different probabilities to
            the same one. none: the identity.
        task: multiclass or multilabel.
        labels: (n,) classes, or (n, classes) 0 and 1, n >= 1.
        predictions: (n, classes) probabilities.
    """
    if method == "none":
        return CalibrationMap("none", task)
    if method == "isotonic":
        return _fit_isotonic(task, labels, predictions)
    calibration = TemperatureFitter(task, *predictions.shape)
    calibration.add(labels, predictions)
    temperature = calibration.fit().value
    if method == "temperature":
        return CalibrationMap("temperature", task, temperature)
    return _fit_vector(task, labels, log_scores(predictions, task), 1 / temperature)


def cross_fit(
    method: str, task: str, keys: Sequence[str], labels: NDArray[Any], predictions: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return out-of-fold calibrated predictions: each by a map that was fitted to other samples.

    A hash of the keys makes five folds; the map of a fold is fitted to the other folds. Methods, quantiles and thresholds
    are chosen on these predictions, because a map is biased on the samples that it was fitted to.

    Args:
        method, task, labels, predictions: as for `fit_calibration_map`.
        keys: (n,) of the samples.

    Raises:
        DataError: fewer than ten samples.
    """
    if len(keys) < MIN_SAMPLES:
        raise DataError(f"{len(keys)} validation samples are too few to calibrate on: expected at least {MIN_SAMPLES}")
    if method == "none":
        return predictions
    # Ranks of hashes, so that folds have equal sizes and none is empty.
    folds = np.argsort(np.argsort(hash_keys(keys, 0, "folds of calibration"), kind="stable")) % FOLDS
    found = np.empty_like(predictions)
    for fold in range(FOLDS):
        others = folds != fold
        found[~others] = fit_calibration_map(method, task, labels[others], predictions[others])(predictions[~others])
    return found


def _fit_isotonic(task: str, labels: NDArray[Any], predictions: NDArray[np.float32]) -> CalibrationMap:
    from sklearn.isotonic import IsotonicRegression  # a second to import

    count, classes = predictions.shape
    floor = 1 / (classes * (count + 1))  # an event that never occurred is not impossible, nor is the rest certain
    knots = []
    for column in range(classes):
        true = labels == column if task == "multiclass" else labels[:, column] > 0
        fitted = IsotonicRegression(y_min=floor, y_max=1 - floor).fit(predictions[:, column], true.astype(np.float64))
        knots.append((tuple(map(float, fitted.X_thresholds_)), tuple(map(float, fitted.y_thresholds_))))
    return CalibrationMap("isotonic", task, knots=tuple(knots))


def _fit_vector(task: str, labels: NDArray[Any], scores: NDArray[np.float32], inverse: float) -> CalibrationMap:
    from scipy.optimize import minimize

    count, classes = scores.shape
    start = np.concatenate([np.full(classes, inverse), np.zeros(classes)])

    def loss(values: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        offset = values - start
        total, gradient = float(offset @ offset) / 2, offset.copy()
        step = max(1, _CHUNK // classes)
        for first in range(0, count, step):
            rows = slice(first, first + step)
            part, part_gradient = _vector_loss(task, labels[rows], scores[rows].astype(np.float64), values)
            total, gradient = total + part, gradient + part_gradient
        return total / count, gradient / count

    found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 200, "ftol": 1e-12, "gtol": 1e-7}).x
    weights, biases = found[:classes].tolist(), found[classes:].tolist()
    return CalibrationMap("vector", task, weights=tuple(weights), biases=tuple(biases))


def _vector_loss(
    task: str, labels: NDArray[Any], scores: NDArray[np.float64], values: NDArray[np.float64]
) -> tuple[float, NDArray[np.float64]]:
    """Return the sum of log losses and its gradient with respect to weights and biases."""
    classes = scores.shape[1]
    mapped = scores * values[:classes] + values[classes:]
    if task == "multilabel":
        applies = labels > 0
        total = np.logaddexp(0, np.where(applies, -mapped, mapped)).sum()
        errors = 0.5 * (1 + np.tanh(mapped / 2)) - applies
    else:
        rows = np.arange(len(labels))
        mapped -= mapped.max(axis=1, keepdims=True)
        powers = np.exp(mapped)
        sums = powers.sum(axis=1, keepdims=True)
        total = np.log(sums).sum() - mapped[rows, labels].sum()
        errors = powers / sums
        errors[rows, labels] -= 1
    return float(total), np.concatenate([(errors * scores).sum(axis=0), errors.sum(axis=0)])
