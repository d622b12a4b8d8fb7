"""Linear heads fitted to features: logistic regression, ridge regression, a linear support vector machine.

Each minimises a mean loss over the samples plus `regularization` times the squared norm of the weights, on features that
were standardised; the standardisation is folded into the weights, so that the head takes features as they are. Without
a given regularisation a grid is walked from strong to weak, each fit starting from the one before it, until the
validation split has liked two in a row less than the best.

Measured on 1,706 x 1,280 features of elpv, one thread: torch's L-BFGS, warm-started, 0.3 to 3 s a fit, against 0.4 to 11 s
of scikit-learn's LogisticRegression for the same minimum; it also serves several labels at once and runs on a GPU. For
the support vector machine scikit-learn's LIBLINEAR is the better one: the squared hinge has no second derivative.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from choral.config import Task
from choral.core.errors import ChoralError, DataError

GRID = tuple(10 ** (exponent / 2) for exponent in range(4, -12, -1))  # 100 to 3e-6
_PATIENCE = 2
_FEW = 1 << 27  # numbers in a matrix that is worth a GiB of float64; larger ones are fitted in float32
_SVM_ITERATIONS = 1000  # of LIBLINEAR's Newton method; what needs more is regularised too little to be of use
_MAX_SCALE = 1e3
_LEAST_DEVIATION = 0.3
Array = NDArray[Any]
Metric = Literal["accuracy", "log_loss"]


@dataclass(frozen=True)
class Samples:
    """Features and what they are of."""

    values: NDArray[np.float32]
    """(n, width)"""
    targets: Array
    """(n,) int64 classes, (n, L) float32 labels, or (n, T) float32 standardised numbers."""
    weights: NDArray[np.float64] | None = None
    """(n,) of the samples' losses in a fit of classes, mean 1, before those that let classes count alike; None: 1."""


@dataclass(frozen=True)
class Head:
    """A linear layer: outputs are values @ weight.T + bias."""

    weight: NDArray[np.float64]
    """(outputs, width)"""
    bias: NDArray[np.float64]
    """(outputs,)"""

    def __call__(self, values: Array) -> NDArray[np.float64]:
        """Return (n, outputs) for (n, width) features."""
        result: NDArray[np.float64] = values @ self.weight.T + self.bias
        return result

    def scaled(self, factor: float) -> Head:
        """Return the head whose outputs are `factor` times as large."""
        return Head(self.weight * factor, self.bias * factor)


@dataclass(frozen=True)
class Fit:
    """A head and how it was chosen."""

    head: Head
    regularization: float
    metric: str
    """accuracy, log_loss or rmse (standardised) on the validation split, which chose the regularisation; "balanced_" and
    the name where classes count alike in it."""
    value: float
    trials: tuple[tuple[float, float], ...]
    """Regularisation and value of the metric, in the order tried."""


def fit_linear(
    task: Task,
    outputs: int,
    train: Samples,
    val: Samples,
    regularization: float | None,
    balanced: bool = False,
    metric: Metric | None = None,
    between: Callable[[], None] | None = None,
) -> Fit:
    """Fit a multinomial logistic regression, one logistic regression a label, or a ridge regression.

    Args:
        task, outputs: of the network.
        train, val: what it is fitted to, and what chooses the regularisation.
        regularization: weight of the squared norm; None: chosen from GRID.
        balanced: classes (of each label its ones and zeros) count alike, in the fit and in what chooses.
        metric: of classes, that chooses; None: log_loss.
        between: called before each fit of the grid; what it raises ends them.
    """
    grid = GRID if regularization is None else (regularization,)
    path = linear_path(task, outputs, train, grid, balanced)
    if task == "regression":
        return _best(path, lambda head: _error_of_numbers(head, val), "rmse", between)
    weights = _mean_weights(task, val, outputs, balanced)

    def loss(head: Head) -> float:
        return float(
            (_losses(task, torch.from_numpy(head(val.values)), torch.from_numpy(val.targets)) * weights).mean()
        )

    if metric == "accuracy" and task == "multiclass":
        return _by_accuracy(path, lambda head: _misses(head, val, weights), balanced, between)
    return _best(path, loss, _named("log_loss", balanced), between)


def linear_path(
    task: Task, outputs: int, train: Samples, grid: tuple[float, ...], balanced: bool = False
) -> Iterator[tuple[float, Head]]:
    """Yield each regularisation of the grid, strong ones first, with its head; a fit is made when it is asked for."""
    if task == "regression":
        return _ridge_path(train, grid)
    return _logistic_path(task, outputs, train, grid, balanced)


def fit_svm(
    outputs: int,
    train: Samples,
    val: Samples,
    regularization: float | None,
    balanced: bool = False,
    metric: Metric | None = None,
    between: Callable[[], None] | None = None,
) -> Fit:
    """Fit a linear support vector machine, one against all, by scikit-learn's LinearSVC.

    Its scores become logits by one positive factor, fitted to the log loss on the validation split (temperature
    scaling, Guo et al. 2017; Platt's method without its shift): softmax then gives probabilities that may be averaged,
    and the order of the scores stays. The arguments are those of `fit_linear`; without a metric, accuracy chooses.

    Raises:
        DataError: a class has no training sample that could be read.
        ChoralError: a given regularisation is so weak that the fit does not come to an end.
    """
    empty = np.setdiff1d(np.arange(outputs), train.targets)
    if len(empty):
        raise DataError(f"finetune.strategy: svm needs samples of every class; class number {empty[0]} has none")
    grid = GRID if regularization is None else (regularization,)
    weights = _mean_weights("multiclass", val, outputs, balanced)
    path = (
        (weight, head.scaled(_best_scale(head(val.values), val.targets, weights)))
        for weight, head in _svm_path(train, grid, balanced)
    )
    if metric != "log_loss":
        return _by_accuracy(path, lambda head: _misses(head, val, weights), balanced, between)

    def loss(head: Head) -> float:
        logits, classes = torch.from_numpy(head(val.values)), torch.from_numpy(val.targets)
        return float((_losses("multiclass", logits, classes) * weights).mean())

    return _best(path, loss, _named("log_loss", balanced), between)


def _best(
    path: Iterator[tuple[float, Head]],
    cost: Callable[[Head], float],
    metric: str,
    between: Callable[[], None] | None,
) -> Fit:
    """Walk along a path of heads, strongest regularisation first; of equally good ones the first is kept."""
    best: tuple[float, float, Head] | None = None
    trials: list[tuple[float, float]] = []
    since = 0
    while True:
        if between is not None:
            between()
        regularization, head = next(path, (0.0, None))
        if head is None:
            break
        value = cost(head)
        trials.append((regularization, value))
        since += 1
        if best is None or value < best[0]:
            best, since = (value, regularization, head), 0
        if since == _PATIENCE:
            break
    if best is None:
        raise ChoralError("finetune.regularization: so weak that the fit did not come to an end; choose a larger one")
    return Fit(best[2], best[1], metric, best[0], tuple(trials))


def _by_accuracy(
    path: Iterator[tuple[float, Head]],
    misses: Callable[[Head], float],
    balanced: bool,
    between: Callable[[], None] | None,
) -> Fit:
    fit = _best(path, misses, _named("accuracy", balanced), between)
    trials = tuple((weight, 1 - value) for weight, value in fit.trials)
    return replace(fit, value=1 - fit.value, trials=trials)


def _named(metric: str, balanced: bool) -> str:
    return f"balanced_{metric}" if balanced else metric


class _Standardized:
    """Features with mean 0 and deviation 1, or less where they hardly vary, in float64 unless they are many.

    A feature that is almost always 0, as many are behind a ReLU, would need a huge weight to count like the others: views
    and fine-tuning, which move all features a little, would drown the head's decision in it. So no deviation counts for
    less than a share of the root mean square of all. On elpv at 224 pixels the largest weight falls from 847 to 1, and
    validation log loss from 0.308 to 0.304 (svm: from 0.312 to 0.306).
    """

    def __init__(self, values: NDArray[np.float32]) -> None:
        self.mean = values.mean(axis=0, dtype=np.float64)
        deviation = values.std(axis=0, dtype=np.float64)
        least = _LEAST_DEVIATION * float(np.sqrt(np.mean(deviation**2)))
        self.std = np.maximum(deviation, least or 1.0)  # features that never change become 0
        kind = np.float64 if values.size <= _FEW else np.float32
        self.values: Array = ((values - self.mean) / self.std).astype(kind, copy=False)

    def fold(self, weight: Array, bias: Array) -> Head:
        """Return the head on features as they are, of one on standardised features."""
        folded = np.asarray(weight, np.float64) / self.std
        return Head(folded, np.asarray(bias, np.float64) - folded @ self.mean)


def _logistic_path(
    task: Task, outputs: int, train: Samples, grid: tuple[float, ...], balanced: bool
) -> Iterator[tuple[float, Head]]:
    features = _Standardized(train.values)
    values, targets = torch.from_numpy(features.values), torch.from_numpy(train.targets)
    weights = _balanced_weights(task, targets, outputs) if balanced else None
    if train.weights is not None:
        own = torch.from_numpy(train.weights)
        weights = own if weights is None else own * weights
    # Starting at 0, and with a penalty on the weights only, the minimum is one, also where classes can be told apart.
    parameters = torch.zeros(outputs, values.shape[1] + 1, dtype=values.dtype, requires_grad=True)
    for regularization in grid:
        optimizer = torch.optim.LBFGS(
            [parameters], max_iter=1000, tolerance_grad=1e-6, tolerance_change=1e-9, line_search_fn="strong_wolfe"
        )

        def closure(optimizer: torch.optim.Optimizer = optimizer, regularization: float = regularization) -> Tensor:
            optimizer.zero_grad()
            logits = torch.addmm(parameters[:, -1], values, parameters[:, :-1].T)
            losses = _losses(task, logits, targets)
            loss = (losses if weights is None else losses * weights).mean()
            loss = loss + regularization * parameters[:, :-1].square().sum()
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        optimizer.step(closure)  # type: ignore[no-untyped-call]
        found = parameters.detach().numpy()
        yield regularization, features.fold(found[:, :-1], found[:, -1])


def _losses(task: Task, logits: Tensor, targets: Tensor) -> Tensor:
    if task == "multiclass":
        return F.cross_entropy(logits, targets, reduction="none")
    return F.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype), reduction="none")


def _balanced_weights(task: Task, targets: Tensor, outputs: int) -> Tensor:
    """Return a weight for each loss that makes classes, or the ones and zeros of each label, count alike; mean 1."""
    if task == "multiclass":
        counts = torch.bincount(targets, minlength=outputs).double()
        return len(targets) / ((counts > 0).sum() * counts)[targets]
    ones = targets.double().mean(dim=0)
    kinds = (ones > 0).double() + (ones < 1).double()
    return 1 / (kinds * torch.where(targets > 0, ones, 1 - ones))


def _ridge_path(train: Samples, grid: tuple[float, ...]) -> Iterator[tuple[float, Head]]:
    """Solve all ridge regressions from one eigendecomposition."""
    features = _Standardized(train.values)
    values, targets = features.values, train.targets.astype(np.float64)
    mean = targets.mean(axis=0)
    eigenvalues, vectors = np.linalg.eigh((values.T @ values).astype(np.float64) / len(values))
    along = vectors.T @ (values.T @ (targets - mean)) / len(values)
    for regularization in grid:
        weight = (vectors @ (along / (eigenvalues.clip(0)[:, None] + regularization))).T
        yield regularization, features.fold(weight, mean)


def _svm_path(train: Samples, grid: tuple[float, ...], balanced: bool) -> Iterator[tuple[float, Head]]:
    from sklearn.exceptions import ConvergenceWarning  # a second to import, which only this strategy pays
    from sklearn.svm import LinearSVC

    features = _Standardized(train.values)
    for regularization in grid:
        # LIBLINEAR weighs the sum of losses by C against half the squared norm. Its primal solver takes no random numbers.
        machine = LinearSVC(
            C=1 / (2 * regularization * len(features.values)),
            dual=False,
            max_iter=_SVM_ITERATIONS,
            class_weight="balanced" if balanced else None,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("error", ConvergenceWarning)
            try:
                machine.fit(features.values, train.targets, sample_weight=train.weights)
            except ConvergenceWarning:  # weaker ones would not end either
                return
        weight, bias = machine.coef_, machine.intercept_
        if len(weight) == 1:  # two classes have one row of scores, above 0 for the second: half of it for, half against
            weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
        yield regularization, features.fold(weight, bias)


def _best_scale(scores: NDArray[np.float64], targets: Array, weights: Tensor) -> float:
    """Return the factor that minimises the log loss, which is convex in it."""
    from scipy.optimize import minimize_scalar

    logits, classes = torch.from_numpy(scores), torch.from_numpy(targets)

    def cost(log_factor: float) -> float:
        losses = F.cross_entropy(logits * float(np.exp(log_factor)), classes, reduction="none")
        return float((losses * weights).mean())

    bounds = (-np.log(_MAX_SCALE), np.log(_MAX_SCALE))
    return float(np.exp(minimize_scalar(cost, bounds=bounds, method="bounded", options={"xatol": 1e-4}).x))


def _mean_weights(task: Task, samples: Samples, outputs: int, balanced: bool) -> Tensor:
    """Return weights of the losses, or hits, of samples; mean 1."""
    targets = torch.from_numpy(samples.targets)
    return _balanced_weights(task, targets, outputs) if balanced else torch.ones(1, dtype=torch.float64)


def _misses(head: Head, samples: Samples, weights: Tensor) -> float:
    """Return the share of samples, by weight, that a head takes for another class."""
    missed = torch.from_numpy(head(samples.values).argmax(axis=1) != samples.targets)
    return float((missed.double() * weights).mean())


def _error_of_numbers(head: Head, samples: Samples) -> float:
    """Return the root mean squared error of standardised numbers."""
    return float(np.sqrt(np.mean((head(samples.values) - samples.targets) ** 2)))
