"""Stacking: a regularised logistic regression on what the members say of samples that they have not seen.

Wolpert 1992, "Stacked generalization", https://doi.org/10.1016/S0893-6080(05)80023-1. The score of class k is

    biases[k] + sum over groups g of weights[g] * log p_g(k)

and the probabilities are the softmax of the scores (multilabel: logits instead of logarithms, and a sigmoid of each). A
group is what was trained several times, in folds or bags: its out-of-fold predictions are one predictor.

One weight a group and one bias a class: a full matrix of weights has groups x classes x classes of them, five million for
five groups and 1,000 classes, which no held-out data determine. What is left is a product of experts with a correction for
how often classes occur; it is equivariant under the order of the classes, and with two classes it is logistic regression on
the groups' log odds, as of any other kind. The penalty draws the weights to 1 / groups and the biases to 0: the stronger it
is, the nearer the answer is to the groups' geometric mean, not to a guess at random.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

STRENGTHS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
FOLDS = 5
LARGEST = 50_000_000  # numbers that are looked at: samples x groups x classes
_ALL_FOLDS = 10_000_000  # numbers up to which the strength is judged on all folds, not on the first alone
_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class Stack:
    """A fitted stack.

    Attributes:
        weights: (groups,).
        biases: (classes,).
        strength: of the penalty, strength / 2 * (|weights - 1 / groups|^2 + |biases|^2), beside the mean log loss.
        loss: mean log loss on what it was fitted on, in nats (multilabel: a label).
    """

    weights: NDArray[np.float64]
    biases: NDArray[np.float64]
    strength: float
    loss: float


def fit_stack(
    features: NDArray[np.float32],
    labels: NDArray[np.generic],
    folds: NDArray[np.int64],
    task: str,
    strengths: Sequence[float] = STRENGTHS,
) -> Stack:
    """Fit by L-BFGS; the penalty is the one that other samples like best.

    Of `strengths`, strongest first, that of the least log loss on the samples of a fold after a fit to those of all others is
    taken, among equals the strongest: summed over all folds where there are at most ten million numbers, else on the first
    fold. The stack is then fitted to all samples.

    Args:
        features: (groups, n, classes) log probabilities or logits, as `combine.log_scores` makes them.
        labels: (n,) classes, or (n, classes) 0 and 1.
        folds: (n,) the fold of each sample, 0 to 4.
        task: multiclass or multilabel.
        strengths: one or more.
    """
    strongest_first = sorted(strengths, reverse=True)
    strength = strongest_first[0]
    if len(strongest_first) > 1:
        losses = np.zeros(len(strongest_first))
        for fold in np.unique(folds)[: FOLDS if features.size <= _ALL_FOLDS else 1]:
            mine, other = folds != fold, folds == fold
            training = _Problem(features[:, mine], labels[mine], task)
            judging = _Problem(features[:, other], labels[other], task)
            start = training.start()
            for number, candidate in enumerate(strongest_first):
                start = training.fitted(candidate, start)
                losses[number] += judging.loss(start)[0] * other.sum()
        strength = strongest_first[int(losses.argmin())]
    problem = _Problem(features, labels, task)
    found = problem.fitted(strength, problem.start())
    groups = len(features)
    return Stack(found[:groups], found[groups:], strength, problem.loss(found)[0])


class _Problem:
    """The log loss of a stack on some samples, as a function of (groups + classes,) weights and biases."""

    def __init__(self, features: NDArray[np.float32], labels: NDArray[np.generic], task: str) -> None:
        self._features, self._labels, self._task = features, labels, task
        self._groups, self._count, self._classes = features.shape
        self._prior = np.append(np.full(self._groups, 1 / self._groups), np.zeros(self._classes))
        # The scale of each unknown: one over the root of about how curved the loss is along it.
        share = np.full(self._classes, 0.25)
        if task == "multiclass":
            share = np.bincount(labels.astype(np.int64), minlength=self._classes) / self._count
        spread = features[:, : _AT_ONCE // self._classes + 1].var(axis=(1, 2))
        curved = np.append(0.1 * spread + 1e-3, 1e-6 + share / self._per)
        self._scale = 1 / np.sqrt(curved)

    @property
    def _per(self) -> int:
        """By how many numbers a sample the loss is divided: the mean of multilabel is over labels as well."""
        return self._classes if self._task == "multilabel" else 1

    def start(self) -> NDArray[np.float64]:
        """Return the geometric mean of the groups."""
        return self._prior.copy()

    def fitted(self, strength: float, start: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the weights and biases of the least loss and penalty; `start` is near, perhaps."""

        def value(scaled: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
            unknowns = scaled * self._scale
            loss, gradient = self.loss(unknowns)
            away = unknowns - self._prior
            return loss + strength / 2 * float(away @ away), (gradient + strength * away) * self._scale

        options = {"maxiter": 200, "gtol": 1e-6, "ftol": 1e-10}
        found = minimize(value, start / self._scale, jac=True, method="L-BFGS-B", options=options)
        result: NDArray[np.float64] = found.x * self._scale
        return result

    def loss(self, unknowns: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        """Return the mean log loss and its gradient."""
        weights, biases = unknowns[: self._groups].astype(np.float32), unknowns[self._groups :].astype(np.float32)
        loss, of_weights, of_biases = 0.0, np.zeros(self._groups), np.zeros(self._classes)
        step = max(1, _AT_ONCE // self._classes)
        for start in range(0, self._count, step):
            features, labels = self._features[:, start : start + step], self._labels[start : start + step]
            scores = np.broadcast_to(biases, features.shape[1:]).copy()
            for values, weight in zip(features, weights, strict=True):
                scores += weight * values
            lost, away = (_binary if self._task == "multilabel" else _softmax)(scores, labels)
            loss += lost
            of_biases += away.sum(axis=0, dtype=np.float64)
            of_weights += [float(np.einsum("nc,nc->n", away, values).sum(dtype=np.float64)) for values in features]
        count = self._count * self._per
        return loss / count, np.append(of_weights, of_biases) / count


def _softmax(scores: NDArray[np.float32], labels: NDArray[np.generic]) -> tuple[float, NDArray[np.float32]]:
    """Return the summed log loss, and the probabilities less what is true."""
    rows, of_label = np.arange(len(labels)), labels.astype(np.int64)
    scores -= scores.max(axis=1, keepdims=True)
    right = scores[rows, of_label].astype(np.float64)
    np.exp(scores, out=scores)
    total = scores.sum(axis=1, dtype=np.float64)
    scores /= total[:, None].astype(np.float32)
    scores[rows, of_label] -= 1
    return float(np.log(total).sum() - right.sum()), scores


def _binary(scores: NDArray[np.float32], labels: NDArray[np.generic]) -> tuple[float, NDArray[np.float32]]:
    values, truth = scores.astype(np.float64), labels.astype(np.float64)
    loss = float((np.logaddexp(0, values) - truth * values).sum())
    return loss, (1 / (1 + np.exp(-values)) - truth).astype(np.float32)
