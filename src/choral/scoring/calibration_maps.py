"""Calibration maps: from combined probabilities to ones that come true as often as they say, fitted to validation data.

They are fitted after members and views are averaged, for an average of calibrated members is not sure enough. Which method
is worth it is told by predictions of samples that the map was not fitted to (`cross_fitted`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from choral.core.errors import DataError
from choral.data.shards.splits import key_hashes
from choral.ensembles.rules import log_scores, probabilities_of, tempered
from choral.ensembles.temperature import Calibration

METHODS = ("none", "temperature", "vector", "isotonic")
FOLDS = 5
FEWEST = 2 * FOLDS
"""Samples that something can be calibrated on."""
_AT_ONCE = 1 << 20  # numbers


@dataclass(frozen=True)
class CalibrationMap:
    """A fitted map.

    Attributes:
        method: one of `METHODS`.
        task: multiclass or multilabel; of regression there is none but "none".
        temperature: by which log probabilities (multilabel: logits) are divided.
        weights, biases: (classes,) of vector: what they are multiplied with, and what is added.
        knots: of isotonic: of each class the probabilities and what they become, rising both; linear between them.
    """

    method: str
    task: str
    temperature: float = 1.0
    weights: tuple[float, ...] = ()
    biases: tuple[float, ...] = ()
    knots: tuple[tuple[tuple[float, ...], tuple[float, ...]], ...] = ()

    def __call__(self, predictions: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return (n, classes) float32 calibrated predictions of (n, classes) float32 ones."""
        if self.method == "temperature":
            return tempered(predictions, self.temperature, self.task)
        if self.method == "vector":
            weights, biases = np.array(self.weights, np.float32), np.array(self.biases, np.float32)
            return probabilities_of(log_scores(predictions, self.task) * weights + biases, self.task)
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
        """By how much the map enlarges a small difference of probabilities at most, 1 to 1000; of smooth methods 1."""
        slopes = [1.0]
        for before, after in self.knots:
            widths = np.maximum(np.diff(before), 1e-12)
            slopes += (np.diff(after) / widths).tolist()
        return min(max(slopes), 1000.0)

    def to_json(self) -> dict[str, Any]:
        """Return what `from_json` reads."""
        own: dict[str, dict[str, Any]] = {
            "none": {},
            "temperature": {"temperature": self.temperature},
            "vector": {"weights": list(self.weights), "biases": list(self.biases)},
            "isotonic": {"knots": [[list(part) for part in pair] for pair in self.knots]},
        }
        return {"method": self.method, **own[self.method]}

    @classmethod
    def from_json(cls, content: Mapping[str, Any], task: str) -> CalibrationMap:
        """Read what `to_json` gave; ValueError, KeyError or TypeError where it is something else."""
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


def fit_map(method: str, task: str, labels: NDArray[Any], predictions: NDArray[np.float32]) -> CalibrationMap:
    """Return a map fitted to labelled samples.

    Args:
        method: temperature: one number (Guo et al. 2017, https://arxiv.org/abs/1706.04599). vector: a weight and a bias a
            class (the same paper), drawn to that temperature as strongly as one sample would; of multilabel this is Platt
            scaling of each label. isotonic: a rising function of each class against all others (Zadrozny and Elkan 2002,
            https://doi.org/10.1145/775047.775151), which no longer tells apart what it maps to the same, and sums to 1 again
            by division. none.
        task: multiclass or multilabel.
        labels: (n,) classes, or (n, classes) 0 and 1, n >= 1.
        predictions: (n, classes) probabilities.
    """
    if method == "none":
        return CalibrationMap("none", task)
    if method == "isotonic":
        return _isotonic(task, labels, predictions)
    calibration = Calibration(task, *predictions.shape)
    calibration.add(labels, predictions)
    temperature = calibration.fit().value
    if method == "temperature":
        return CalibrationMap("temperature", task, temperature)
    return _vector(task, labels, log_scores(predictions, task), 1 / temperature)


def cross_fitted(
    method: str, task: str, keys: Sequence[str], labels: NDArray[Any], predictions: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return calibrated predictions, each by a map that was fitted to other samples.

    There are five folds by a hash of the keys; the map of a fold is fitted to the others. What is chosen after the map (a
    method, a quantile, a threshold) is chosen on these, for on its own samples a map looks better than it is.

    Args:
        method, task, labels, predictions: as for `fit_map`.
        keys: (n,) of the samples.

    Raises:
        DataError: fewer than ten samples.
    """
    if len(keys) < FEWEST:
        raise DataError(f"{len(keys)} validation samples are too few to calibrate on: expected {FEWEST} at least")
    if method == "none":
        return predictions
    # Ranks of hashes, so that folds are of the same size, and none is empty.
    folds = np.argsort(np.argsort(key_hashes(keys, 0, "folds of calibration"), kind="stable")) % FOLDS
    found = np.empty_like(predictions)
    for fold in range(FOLDS):
        others = folds != fold
        found[~others] = fit_map(method, task, labels[others], predictions[others])(predictions[~others])
    return found


def _isotonic(task: str, labels: NDArray[Any], predictions: NDArray[np.float32]) -> CalibrationMap:
    from sklearn.isotonic import IsotonicRegression  # a second to import

    count, classes = predictions.shape
    floor = 1 / (classes * (count + 1))  # what never happened is not impossible, nor is the rest certain
    knots = []
    for column in range(classes):
        true = labels == column if task == "multiclass" else labels[:, column] > 0
        fitted = IsotonicRegression(y_min=floor, y_max=1 - floor).fit(predictions[:, column], true.astype(np.float64))
        knots.append((tuple(map(float, fitted.X_thresholds_)), tuple(map(float, fitted.y_thresholds_))))
    return CalibrationMap("isotonic", task, knots=tuple(knots))


def _vector(task: str, labels: NDArray[Any], scores: NDArray[np.float32], inverse: float) -> CalibrationMap:
    from scipy.optimize import minimize

    count, classes = scores.shape
    start = np.concatenate([np.full(classes, inverse), np.zeros(classes)])

    def loss(values: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        away = values - start
        total, slope = float(away @ away) / 2, away.copy()
        step = max(1, _AT_ONCE // classes)
        for first in range(0, count, step):
            rows = slice(first, first + step)
            part, part_slope = _vector_loss(task, labels[rows], scores[rows].astype(np.float64), values)
            total, slope = total + part, slope + part_slope
        return total / count, slope / count

    found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 200, "ftol": 1e-12, "gtol": 1e-7}).x
    weights, biases = found[:classes].tolist(), found[classes:].tolist()
    return CalibrationMap("vector", task, weights=tuple(weights), biases=tuple(biases))


def _vector_loss(
    task: str, labels: NDArray[Any], scores: NDArray[np.float64], values: NDArray[np.float64]
) -> tuple[float, NDArray[np.float64]]:
    """Return the sum of log losses and its slope in weights and biases."""
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
