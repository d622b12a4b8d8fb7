"""Weights of members: the convex ones that fit best, and those that greedy selection finds.

Neither needs the predictions as a whole. The log loss of a weighted mean is a function of what each member gives to what is
true, one number a sample (multilabel: a sample and label) and member; the squared error, of the members' errors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

GAP = 1e-7  # nats, or of squared errors the share: so near to the best weights is near enough
_STEPS = 200
_ROWS = 1 << 18  # looked at together


@dataclass(frozen=True)
class Weights:
    """Weights of members, and what they come to on what they were fitted on.

    Attributes:
        values: (members,) float64, 0 or more, summing to 1.
        loss: mean log loss in nats, or mean squared error.
        gap: the loss is at most so much above the least that any convex weights have; NaN where that is not known.
    """

    values: NDArray[np.float64]
    loss: float
    gap: float = float("nan")


def least_log_loss(truths: NDArray[np.floating]) -> Weights:
    """Return the convex weights of the least mean log loss.

    The problem is convex. Newton's method: each step minimises the quadratic model of the loss over all convex weights,
    which is a least squares problem in as many unknowns as there are members; where it does not lower the loss, a step of
    expectation maximisation does. Ends when the duality gap, max over members of mean(truths / mixture) - 1, which bounds
    what is left to gain, is below a ten-millionth nat.

    Args:
        truths: (n, members) the probability that each member gives to what is true, above 0.
    """
    members = truths.shape[1]
    weights = np.full(members, 1 / members)
    loss, slope, curvature = _moments(truths, weights)
    for _ in range(_STEPS):
        if slope.max() - 1 <= GAP:
            break
        # With the rows q of truths / mixture, whose mean is the slope: the model is the mean of (q w - 2)^2 / 2.
        model = curvature - 2 * (slope[:, None] + slope[None, :]) + 4
        target, stride = least_squares(model), 1.0
        while stride > 1e-6:
            trial = weights + stride * (target - weights)
            found = _moments(truths, trial)
            if found[0] < loss:
                break
            stride /= 2
        else:
            trial = weights * slope
            trial /= trial.sum()
            found = _moments(truths, trial)
            if found[0] >= loss:
                break  # no number in float64 is nearer
        weights, (loss, slope, curvature) = trial, found
    return Weights(weights, loss, float(slope.max() - 1))


def least_squares(gram: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the convex weights w that minimise w' gram w: the point of a polytope that is nearest to the origin.

    As non-negative least squares (Lawson and Hanson 1974): without the condition that the weights sum to 1, but with a row
    that asks for it, the solution points in the same direction.

    Args:
        gram: (members, members) symmetric, of errors: mean over samples of the products of two members' errors.
    """
    values, vectors = np.linalg.eigh(gram)
    root = np.sqrt(np.maximum(values, 0))[:, None] * vectors.T
    scale = np.sqrt(np.trace(gram) / len(gram)) or 1.0
    solution, _ = nnls(np.vstack([root / scale, np.ones(len(gram))]), np.append(np.zeros(len(gram)), 1.0))
    weights: NDArray[np.float64] = solution / solution.sum()
    return weights


def least_squared_error(gram: NDArray[np.float64]) -> Weights:
    """Return the convex weights of the least mean squared error, from the members' errors' (members, members) gram."""
    weights = least_squares(gram)
    loss = float(weights @ gram @ weights)
    return Weights(weights, loss, max(0.0, 2 * (loss - float((gram @ weights).min()))))


def greedy_log_loss(truths: NDArray[np.floating], picks: int) -> Weights:
    """Return how often each member is taken, as weights, by greedy selection for the least mean log loss.

    Caruana et al. 2004, "Ensemble selection from libraries of models", https://doi.org/10.1145/1015330.1015432: starting
    with none, the member whose joining gives the least loss is taken, again and again, each as often as it is worth it;
    among equals the first. Of all that was so selected on the way, the best is kept, among equals the smallest.

    Args:
        truths: (n, members) the probability that each member gives to what is true, above 0.
        picks: so many at most.
    """

    def losses(total: NDArray[np.float64], size: int) -> NDArray[np.float64]:
        sums = np.zeros(truths.shape[1])
        for start in range(0, len(truths), _ROWS):
            rows = slice(start, start + _ROWS)
            sums += np.log(total[rows, None] + truths[rows]).sum(axis=0)
        found: NDArray[np.float64] = np.log(size) - sums / len(truths)
        return found

    total, taken, found = np.zeros(len(truths)), [], []
    for size in range(1, picks + 1):
        candidates = losses(total, size)
        taken.append(int(candidates.argmin()))
        found.append((float(candidates[taken[-1]]),))
        total += truths[:, taken[-1]]
    return _best_prefix(taken, found, truths.shape[1])


def greedy_squared_error(gram: NDArray[np.float64], picks: int) -> Weights:
    """Return the same for the least mean squared error, from the members' errors' (members, members) gram."""
    counts, taken, found = np.zeros(len(gram)), [], []
    for size in range(1, picks + 1):
        candidates = (counts @ gram @ counts + 2 * (gram @ counts) + np.diag(gram)) / size**2
        taken.append(int(candidates.argmin()))
        found.append((float(candidates[taken[-1]]),))
        counts[taken[-1]] += 1
    return _best_prefix(taken, found, len(gram))


@dataclass(frozen=True)
class Rivals:
    """The classes that can be the most probable one of a weighted mean, of each sample; all else cannot matter.

    A class is left out where no member gives it as much as all members give to some other class.

    Attributes:
        values: (rivals, members) float32 the members' probabilities, sample by sample, in the order of classes.
        starts: (n,) where each sample's rivals begin; each has one at least.
        is_label: (rivals,) bool, whether it is the label of its sample; that of some samples is no rival.
    """

    values: NDArray[np.float32]
    starts: NDArray[np.int64]
    is_label: NDArray[np.bool_]

    @classmethod
    def of(cls, stack: NDArray[np.float32], labels: NDArray[np.int64]) -> Rivals:
        """Return the rivals of a (members, n, classes) stack."""
        certain = stack.min(axis=0).max(axis=1, keepdims=True)
        sample, chosen = np.nonzero(stack.max(axis=0) >= certain)
        starts = np.searchsorted(sample, np.arange(len(labels)))
        return cls(np.ascontiguousarray(stack[:, sample, chosen].T), starts, chosen == labels[sample])

    @classmethod
    def joined(cls, parts: list[Rivals]) -> Rivals:
        """Return the rivals of consecutive samples as one."""
        offsets = np.cumsum([0, *(len(part.values) for part in parts[:-1])])
        return cls(
            np.concatenate([part.values for part in parts]),
            np.concatenate([part.starts + offset for part, offset in zip(parts, offsets, strict=True)]),
            np.concatenate([part.is_label for part in parts]),
        )

    def hits(self, totals: NDArray[np.float64]) -> int:
        """Return of how many samples the label has the highest of the rivals' (rivals,) totals, and the first such one."""
        counts = np.diff(self.starts, append=len(totals))
        highest = np.maximum.reduceat(totals, self.starts)
        leaders = np.where(totals == np.repeat(highest, counts), np.arange(len(totals)), len(totals))
        return int(self.is_label[np.minimum.reduceat(leaders, self.starts)].sum())


def greedy_accuracy(rivals: Rivals, truths: NDArray[np.floating], picks: int) -> Weights:
    """Return the same as `greedy_log_loss` for the highest accuracy; of equal accuracy, the lower log loss is better."""
    members, count = rivals.values.shape[1], len(rivals.starts)
    totals, total, taken = np.zeros(len(rivals.values)), np.zeros(count), []
    found: list[tuple[float, ...]] = []
    for size in range(1, picks + 1):
        candidates = [
            (-rivals.hits(totals + rivals.values[:, member]), float(-np.log((total + truths[:, member]) / size).mean()))
            for member in range(members)
        ]
        taken.append(min(range(members), key=candidates.__getitem__))
        found.append(candidates[taken[-1]])
        totals += rivals.values[:, taken[-1]]
        total += truths[:, taken[-1]]
    return _best_prefix(taken, found, members)


def _best_prefix(taken: Sequence[int], found: Sequence[tuple[float, ...]], members: int) -> Weights:
    """Return the weights after the step that found the least; the last of the numbers found is the loss."""
    best = min(range(len(taken)), key=found.__getitem__)
    counts = np.bincount(taken[: best + 1], minlength=members)
    return Weights(counts / counts.sum(), found[best][-1])


def _moments(
    truths: NDArray[np.floating], weights: NDArray[np.float64]
) -> tuple[float, NDArray[np.float64], NDArray[np.float64]]:
    """Return the mean log loss of a mixture, minus its gradient, and its (members, members) Hessian."""
    members, count = truths.shape[1], len(truths)
    loss, slope, curvature = 0.0, np.zeros(members), np.zeros((members, members))
    for start in range(0, count, _ROWS):
        block = truths[start : start + _ROWS].astype(np.float64)
        mixture = block @ weights
        loss -= float(np.log(mixture).sum())
        block /= mixture[:, None]
        slope += block.sum(axis=0)
        curvature += block.T @ block
    return loss / count, slope / count, curvature / count
