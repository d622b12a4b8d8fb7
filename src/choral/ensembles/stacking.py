"""Stacking: a regularised logistic regression on out-of-fold predictions.

Wolpert 1992, "Stacked generalization", https://doi.org/10.1016/S0893-6080(05)80023-1. The score of class k is

    biases[k] + sum over groups g of weights[g] * log p_g(k)

and the probabilities are the softmax of the scores (multilabel: logits instead of logarithms, and a sigmoid of each). A
group
holds the members trained on different folds or bags of the same data: their out-of-fold predictions form one predictor.

There is one weight a group and one bias a class. A full weight matrix would have groups x classes x classes weights,
five million for five groups and 1,000 classes, which no held-out data can determine. What remains is a product of
experts with a correction for class frequencies. It is equivariant to the order of the classes; with two classes it is
logistic regression on the groups' log odds. The penalty draws the weights to 1 / groups and the biases to 0: the
stronger it is, the closer the result is to the groups' geometric mean, not to a uniform prediction. Above 2,000 classes
there are no biases, because a few samples a class cannot determine them.

scikit-learn's `LogisticRegression` cannot express weights that are shared by all classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

STRENGTHS = (1e-1, 1e-2, 1e-3, 1e-4)
FOLDS = 5
LARGEST = 50_000_000  # numbers to fit to: samples x groups x classes
_ALL_FOLDS = 10_000_000  # numbers up to which all folds are used to choose the strength, not the first alone
MOST_BIASES = 2_000  # classes
_BLOCK_NUMBERS = 1 << 20
_MAX_STEPS = 50


@dataclass(frozen=True)
class StackingFit:
    """The parameters of a fitted stack.

    Attributes:
        weights: (groups,).
        biases: (classes,).
        strength: of the penalty, strength / 2 * (|weights - 1 / groups|^2 + |biases|^2), added to the mean log loss.
        loss: mean log loss on the samples it was fitted to, in nats (multilabel: averaged over labels).
    """

    weights: NDArray[np.float64]
    biases: NDArray[np.float64]
    strength: float
    loss: float


def fit_stacking(
    features: NDArray[np.float32],
    labels: NDArray[np.generic],
    folds: NDArray[np.int64],
    task: str,
    strengths: Sequence[float] = STRENGTHS,
) -> StackingFit:
    """Fit a stack by Newton's method, with the penalty chosen by cross-validation.

    The strength of least log loss on a fold after a fit to the other folds is taken, among ties the strongest: summed
    over all folds up to ten million numbers, else on the first fold alone. The stack is then fitted to all samples.

    Args:
        features: (groups, n, classes) log probabilities or logits, from `rules.log_scores`.
        labels: (n,) classes, or (n, classes) 0 and 1.
        folds: (n,) fold of each sample, 0 to 4.
        task: multiclass or multilabel.
        strengths: one or more.
    """
    strongest_first = sorted(strengths, reverse=True)
    strength = strongest_first[0]
    if len(strongest_first) > 1:
        losses = np.zeros(len(strongest_first))
        for fold in np.unique(folds)[: FOLDS if features.size <= _ALL_FOLDS else 1]:
            in_training, in_test = folds != fold, folds == fold
            training = _Problem(features[:, in_training], labels[in_training], task)
            test = _Problem(features[:, in_test], labels[in_test], task)
            parameters = training.initial_parameters()
            for number, candidate in enumerate(strongest_first):
                parameters = training.minimize(candidate, parameters)
                losses[number] += test.loss(parameters) * in_test.sum()
        strength = strongest_first[int(losses.argmin())]
    problem = _Problem(features, labels, task)
    parameters = problem.minimize(strength, problem.initial_parameters())
    return StackingFit(parameters[: len(features)], problem.biases(parameters), strength, problem.loss(parameters))


class _Problem:
    """The log loss of a stack on some samples, as a function of its weights and (below 2,000 classes) biases."""

    def __init__(self, features: NDArray[np.float32], labels: NDArray[np.generic], task: str) -> None:
        self._features, self._labels, self._task = features, labels, task
        self._groups, self._count, self._classes = features.shape
        self._biases = self._classes if self._classes <= MOST_BIASES else 0
        self._prior = np.append(np.full(self._groups, 1 / self._groups), np.zeros(self._biases))

    def initial_parameters(self) -> NDArray[np.float64]:
        """Return the parameters of the groups' geometric mean."""
        return self._prior.copy()

    def biases(self, parameters: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the (classes,) biases, 0 if there are too many classes."""
        return parameters[self._groups :] if self._biases else np.zeros(self._classes)

    def minimize(self, strength: float, start: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the parameters of least penalised loss, by Newton's method.

        Steps that do not lower the loss are halved; it stops if a step promises less than 1e-9 nats.
        """

        def value(parameters: NDArray[np.float64]) -> float:
            deviation = parameters - self._prior
            return self.loss(parameters) + strength / 2 * float(deviation @ deviation)

        parameters, reached = start, value(start)
        for _ in range(_MAX_STEPS):
            gradient, hessian = self._derivatives(parameters)
            gradient += strength * (parameters - self._prior)
            hessian[np.diag_indices_from(hessian)] += strength
            step = np.linalg.solve(hessian, -gradient)
            if -(gradient @ step) / 2 < 1e-9:
                break
            step_size = 1.0
            while (trial := value(parameters + step_size * step)) >= reached and step_size > 1e-3:
                step_size /= 2
            if trial >= reached:
                break  # converged to float32 precision
            parameters, reached = parameters + step_size * step, trial
        return parameters

    def loss(self, parameters: NDArray[np.float64]) -> float:
        """Return the mean log loss, without the penalty."""
        total = 0.0
        for features, labels in self._blocks():
            total += self._evaluate(self._scores(features, parameters), labels)[0]
        return total / self._size

    def _derivatives(self, parameters: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the gradient and the Hessian of the mean log loss."""
        groups, of_biases = self._groups, slice(self._groups, self._groups + self._biases)
        gradient, hessian = np.zeros(groups + self._biases), np.zeros((groups + self._biases,) * 2)
        for features, labels in self._blocks():
            _, probabilities, residuals = self._evaluate(self._scores(features, parameters), labels)
            gradient[:groups] += [np.einsum("nc,nc->n", residuals, values).sum(dtype=np.float64) for values in features]
            variance = probabilities * (1 - probabilities) if self._task == "multilabel" else probabilities
            products = features * variance
            hessian[:groups, :groups] += products.reshape(groups, -1) @ features.reshape(groups, -1).T
            cross = products.sum(axis=1)
            if self._task != "multilabel":  # the probabilities of the classes sum to 1
                means = products.sum(axis=2)
                hessian[:groups, :groups] -= means @ means.T
                cross -= means @ probabilities
            if self._biases:
                gradient[of_biases] += residuals.sum(axis=0, dtype=np.float64)
                hessian[:groups, of_biases] += cross
                hessian[of_biases, of_biases] += np.diag(variance.sum(axis=0, dtype=np.float64))
                if self._task != "multilabel":
                    hessian[of_biases, of_biases] -= probabilities.T @ probabilities
        hessian[of_biases, :groups] = hessian[:groups, of_biases].T
        return gradient / self._size, hessian / self._size

    @property
    def _size(self) -> int:
        """The divisor of the summed loss: samples, for multilabel times labels."""
        return int(self._count * (self._classes if self._task == "multilabel" else 1))

    def _blocks(self) -> Iterator[tuple[NDArray[np.float32], NDArray[np.generic]]]:
        step = max(1, _BLOCK_NUMBERS // self._classes)
        for start in range(0, self._count, step):
            yield self._features[:, start : start + step], self._labels[start : start + step]

    def _scores(self, features: NDArray[np.float32], parameters: NDArray[np.float64]) -> NDArray[np.float32]:
        scores = np.broadcast_to(self.biases(parameters).astype(np.float32), features.shape[1:]).copy()
        for values, weight in zip(features, parameters[: self._groups].astype(np.float32), strict=True):
            scores += weight * values
        return scores

    def _evaluate(self, scores: NDArray[np.float32], labels: NDArray[np.generic]) -> _Evaluation:
        return (_evaluate_sigmoid if self._task == "multilabel" else _evaluate_softmax)(scores, labels)


_Evaluation = tuple[float, NDArray[np.float32], NDArray[np.float32]]


def _evaluate_softmax(scores: NDArray[np.float32], labels: NDArray[np.generic]) -> _Evaluation:
    """Return the summed log loss, the probabilities, and the residuals (probabilities minus one-hot labels)."""
    rows, classes = np.arange(len(labels)), labels.astype(np.int64)
    scores -= scores.max(axis=1, keepdims=True)
    label_scores = scores[rows, classes].astype(np.float64)
    np.exp(scores, out=scores)
    total = scores.sum(axis=1, dtype=np.float64)
    scores /= total[:, None].astype(np.float32)
    residuals = scores.copy()
    residuals[rows, classes] -= 1
    return float(np.log(total).sum() - label_scores.sum()), scores, residuals


def _evaluate_sigmoid(scores: NDArray[np.float32], labels: NDArray[np.generic]) -> _Evaluation:
    """Return the same of independent labels."""
    values, truth = scores.astype(np.float64), labels.astype(np.float64)
    loss = float((np.logaddexp(0, values) - truth * values).sum())
    probabilities = 1 / (1 + np.exp(-values))
    return loss, probabilities.astype(np.float32), (probabilities - truth).astype(np.float32)
