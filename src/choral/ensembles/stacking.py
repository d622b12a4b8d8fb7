"""Stacking: a regularised logistic regression on what the members say of samples that they have not seen.

Wolpert 1992, "Stacked generalization", https://doi.org/10.1016/S0893-6080(05)80023-1. The score of class k is

    biases[k] + sum over groups g of weights[g] * log p_g(k)

and the probabilities are the softmax of the scores (multilabel: logits instead of logarithms, and a sigmoid of each). A
group is what was trained several times, in folds or bags: its out-of-fold predictions are one predictor.

One weight a group and one bias a class: a full matrix of weights has groups x classes x classes of them, five million for
five groups and 1,000 classes, which no held-out data determine. What is left is a product of experts with a correction for
how often classes occur; it is equivariant under the order of the classes, and with two classes it is logistic regression on
the groups' log odds, as of any other kind. The penalty draws the weights to 1 / groups and the biases to 0: the stronger it
is, the nearer the answer is to the groups' geometric mean, not to a guess at random. With more than 2,000 classes there are
no biases: a few samples a class do not say what they should be.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

STRENGTHS = (1e-1, 1e-2, 1e-3, 1e-4)
FOLDS = 5
LARGEST = 50_000_000  # numbers that are looked at: samples x groups x classes
_ALL_FOLDS = 10_000_000  # numbers up to which the strength is judged on all folds, not on the first alone
MOST_BIASES = 2_000  # classes
_AT_ONCE = 1 << 20
_STEPS = 50


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
    """Fit by Newton's method; the penalty is the one that other samples like best.

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
                losses[number] += judging.loss(start) * other.sum()
        strength = strongest_first[int(losses.argmin())]
    problem = _Problem(features, labels, task)
    found = problem.fitted(strength, problem.start())
    return Stack(found[: len(features)], problem.biases_of(found), strength, problem.loss(found))


class _Problem:
    """The log loss of a stack on some samples, as a function of its weights and, where it has some, biases."""

    def __init__(self, features: NDArray[np.float32], labels: NDArray[np.generic], task: str) -> None:
        self._features, self._labels, self._task = features, labels, task
        self._groups, self._count, self._classes = features.shape
        self._biases = self._classes if self._classes <= MOST_BIASES else 0
        self._prior = np.append(np.full(self._groups, 1 / self._groups), np.zeros(self._biases))

    def start(self) -> NDArray[np.float64]:
        """Return the geometric mean of the groups."""
        return self._prior.copy()

    def biases_of(self, unknowns: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the (classes,) biases, of very many classes 0."""
        return unknowns[self._groups :] if self._biases else np.zeros(self._classes)

    def fitted(self, strength: float, start: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the unknowns of the least loss and penalty, by Newton's method from `start`.

        Steps that do not lower the sum are halved; it ends where a step promises less than a billionth nat.
        """

        def value(unknowns: NDArray[np.float64]) -> float:
            away = unknowns - self._prior
            return self.loss(unknowns) + strength / 2 * float(away @ away)

        unknowns, reached = start, value(start)
        for _ in range(_STEPS):
            slope, curvature = self._derivatives(unknowns)
            slope += strength * (unknowns - self._prior)
            curvature[np.diag_indices_from(curvature)] += strength
            step = np.linalg.solve(curvature, -slope)
            if -(slope @ step) / 2 < 1e-9:
                break
            stride = 1.0
            while (found := value(unknowns + stride * step)) >= reached and stride > 1e-3:
                stride /= 2
            if found >= reached:
                break  # as low as float32 can tell
            unknowns, reached = unknowns + stride * step, found
        return unknowns

    def loss(self, unknowns: NDArray[np.float64]) -> float:
        """Return the mean log loss."""
        total = 0.0
        for features, labels in self._blocks():
            total += (_binary if self._task == "multilabel" else _softmax)(self._scores(features, unknowns), labels)[0]
        return total / self._size

    def _derivatives(self, unknowns: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the gradient and the Hessian of the mean log loss."""
        groups, own = self._groups, slice(self._groups, self._groups + self._biases)
        slope, curvature = np.zeros(groups + self._biases), np.zeros((groups + self._biases,) * 2)
        for features, labels in self._blocks():
            _, said, away = (_binary if self._task == "multilabel" else _softmax)(
                self._scores(features, unknowns), labels
            )
            slope[:groups] += [np.einsum("nc,nc->n", away, values).sum(dtype=np.float64) for values in features]
            share = said * (1 - said) if self._task == "multilabel" else said
            times = features * share
            curvature[:groups, :groups] += times.reshape(groups, -1) @ features.reshape(groups, -1).T
            across = times.sum(axis=1)
            if self._task != "multilabel":  # classes share one unit of probability
                means = times.sum(axis=2)
                curvature[:groups, :groups] -= means @ means.T
                across -= means @ said
            if self._biases:
                slope[own] += away.sum(axis=0, dtype=np.float64)
                curvature[:groups, own] += across
                curvature[own, own] += np.diag(share.sum(axis=0, dtype=np.float64))
                if self._task != "multilabel":
                    curvature[own, own] -= said.T @ said
        curvature[own, :groups] = curvature[:groups, own].T
        return slope / self._size, curvature / self._size

    @property
    def _size(self) -> int:
        """By what the summed loss is divided: the mean of multilabel is over labels as well."""
        return int(self._count * (self._classes if self._task == "multilabel" else 1))

    def _blocks(self) -> Iterator[tuple[NDArray[np.float32], NDArray[np.generic]]]:
        step = max(1, _AT_ONCE // self._classes)
        for start in range(0, self._count, step):
            yield self._features[:, start : start + step], self._labels[start : start + step]

    def _scores(self, features: NDArray[np.float32], unknowns: NDArray[np.float64]) -> NDArray[np.float32]:
        scores = np.broadcast_to(self.biases_of(unknowns).astype(np.float32), features.shape[1:]).copy()
        for values, weight in zip(features, unknowns[: self._groups].astype(np.float32), strict=True):
            scores += weight * values
        return scores


_Found = tuple[float, NDArray[np.float32], NDArray[np.float32]]


def _softmax(scores: NDArray[np.float32], labels: NDArray[np.generic]) -> _Found:
    """Return the summed log loss, the probabilities, and these less what is true."""
    rows, of_label = np.arange(len(labels)), labels.astype(np.int64)
    scores -= scores.max(axis=1, keepdims=True)
    right = scores[rows, of_label].astype(np.float64)
    np.exp(scores, out=scores)
    total = scores.sum(axis=1, dtype=np.float64)
    scores /= total[:, None].astype(np.float32)
    away = scores.copy()
    away[rows, of_label] -= 1
    return float(np.log(total).sum() - right.sum()), scores, away


def _binary(scores: NDArray[np.float32], labels: NDArray[np.generic]) -> _Found:
    values, truth = scores.astype(np.float64), labels.astype(np.float64)
    loss = float((np.logaddexp(0, values) - truth * values).sum())
    said = 1 / (1 + np.exp(-values))
    return loss, said.astype(np.float32), (said - truth).astype(np.float32)
