"""Member weights: the optimal convex ones, and those of greedy selection.

Neither needs all predictions. The log loss of a weighted mean depends only on the probability that each member gives to
the truth, one number for each sample (multilabel: sample and label) and member; the squared error only on the members'
errors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

DUALITY_GAP = 1e-7  # nats, or share of the squared error: convergence threshold
_MAX_STEPS = 200
_BLOCK_ROWS = 1 << 18


@dataclass(frozen=True)
class MemberWeights:
    """Weights of members, and their loss on the samples they were fitted to.

    Attributes:
        values: (members,) float64, 0 or more, summing to 1.
        loss: mean log loss in nats, or mean squared error.
        gap: upper bound of how far the loss is above that of the best convex weights; NaN if unknown.
    """

    values: NDArray[np.float64]
    loss: float
    gap: float = float("nan")


def min_log_loss_weights(true_probabilities: NDArray[np.floating]) -> MemberWeights:
    """Return the convex weights of least mean log loss.

    The problem is convex and solved by Newton's method. Each step minimises the quadratic model of the loss over all
    convex weights, a least-squares problem in as many unknowns as there are members; if that does not lower the loss, an
    expectation-maximisation step does. It stops when the duality gap, max over members of mean(p / mixture) - 1, which
    bounds the remaining gain, is below 1e-7 nats.

    Args:
        true_probabilities: (n, members) probability that each member gives to the truth, above 0.
    """
    members = true_probabilities.shape[1]
    weights = np.full(members, 1 / members)
    loss, gradient, hessian = _log_loss_derivatives(true_probabilities, weights)
    for _ in range(_MAX_STEPS):
        if gradient.max() - 1 <= DUALITY_GAP:
            break
        # With rows q = p / mixture, whose mean is the (negative) gradient, the model is the mean of (q w - 2)^2 / 2.
        model = hessian - 2 * (gradient[:, None] + gradient[None, :]) + 4
        target, step_size = simplex_least_squares(model), 1.0
        while step_size > 1e-6:
            trial = weights + step_size * (target - weights)
            derivatives = _log_loss_derivatives(true_probabilities, trial)
            if derivatives[0] < loss:
                break
            step_size /= 2
        else:
            trial = weights * gradient
            trial /= trial.sum()
            derivatives = _log_loss_derivatives(true_probabilities, trial)
            if derivatives[0] >= loss:
                break  # converged to float64 precision
        weights, (loss, gradient, hessian) = trial, derivatives
    return MemberWeights(weights, loss, float(gradient.max() - 1))


def simplex_least_squares(gram: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the convex weights w that minimise w' gram w: the point of a polytope that is nearest to the origin.

    Solved by non-negative least squares (Lawson and Hanson 1974): without the constraint that the weights sum to 1, but
    with a row that asks for it, the solution points in the same direction.

    Args:
        gram: (members, members) symmetric, mean over samples of the products of two members' errors.
    """
    from scipy.optimize import nnls  # takes half a second to import, and most score tables fit no weights

    values, vectors = np.linalg.eigh(gram)
    root = np.sqrt(np.maximum(values, 0))[:, None] * vectors.T
    scale = np.sqrt(np.trace(gram) / len(gram)) or 1.0
    solution, _ = nnls(np.vstack([root / scale, np.ones(len(gram))]), np.append(np.zeros(len(gram)), 1.0))
    weights: NDArray[np.float64] = solution / solution.sum()
    return weights


def min_squared_error_weights(gram: NDArray[np.float64]) -> MemberWeights:
    """Return the convex weights of least mean squared error, from the (members, members) Gram matrix of errors."""
    weights = simplex_least_squares(gram)
    loss = float(weights @ gram @ weights)
    return MemberWeights(weights, loss, max(0.0, 2 * (loss - float((gram @ weights).min()))))


def greedy_log_loss(true_probabilities: NDArray[np.floating], max_picks: int) -> MemberWeights:
    """Return the weights of greedy selection with replacement by the mean log loss.

    Caruana et al. 2004, "Ensemble selection from libraries of models", https://doi.org/10.1145/1015330.1015432. Starting
    from nothing, the member whose addition gives the least loss is added, again and again; ties go to the first. The
    best of all intermediate selections is returned, among ties the smallest.

    Args:
        true_probabilities: (n, members) probability that each member gives to the truth, above 0.
        max_picks: number of selection steps.
    """

    def losses(total: NDArray[np.float64], size: int) -> NDArray[np.float64]:
        sums = np.zeros(true_probabilities.shape[1])
        for start in range(0, len(true_probabilities), _BLOCK_ROWS):
            rows = slice(start, start + _BLOCK_ROWS)
            sums += np.log(total[rows, None] + true_probabilities[rows]).sum(axis=0)
        by_member: NDArray[np.float64] = np.log(size) - sums / len(true_probabilities)
        return by_member

    total, picks, reached = np.zeros(len(true_probabilities)), [], []
    for size in range(1, max_picks + 1):
        candidates = losses(total, size)
        picks.append(int(candidates.argmin()))
        reached.append((float(candidates[picks[-1]]),))
        total += true_probabilities[:, picks[-1]]
    return _best_prefix(picks, reached, true_probabilities.shape[1])


def greedy_squared_error(gram: NDArray[np.float64], max_picks: int) -> MemberWeights:
    """Return the weights of greedy selection by the mean squared error, from the (members, members) Gram matrix of errors."""
    counts, picks, reached = np.zeros(len(gram)), [], []
    for size in range(1, max_picks + 1):
        candidates = (counts @ gram @ counts + 2 * (gram @ counts) + np.diag(gram)) / size**2
        picks.append(int(candidates.argmin()))
        reached.append((float(candidates[picks[-1]]),))
        counts[picks[-1]] += 1
    return _best_prefix(picks, reached, len(gram))


@dataclass(frozen=True)
class CandidateClasses:
    """The classes of each sample that can be the argmax of a weighted mean; all others can be ignored.

    A class is no candidate if some other class has a higher probability in every member than this one has in any.

    Attributes:
        values: (candidates, members) float32 probabilities, sample by sample, in class order.
        starts: (n,) where each sample's candidates begin; each sample has at least one.
        is_label: (candidates,) bool, whether it is the label of its sample; a label need not be a candidate.
    """

    values: NDArray[np.float32]
    starts: NDArray[np.int64]
    is_label: NDArray[np.bool_]

    @classmethod
    def from_stack(cls, stack: NDArray[np.float32], labels: NDArray[np.int64]) -> CandidateClasses:
        """Return the candidates of a (members, n, classes) stack."""
        guaranteed = stack.min(axis=0).max(axis=1, keepdims=True)
        sample, chosen = np.nonzero(stack.max(axis=0) >= guaranteed)
        starts = np.searchsorted(sample, np.arange(len(labels)))
        return cls(np.ascontiguousarray(stack[:, sample, chosen].T), starts, chosen == labels[sample])

    @classmethod
    def concatenate(cls, parts: list[CandidateClasses]) -> CandidateClasses:
        """Return the candidates of consecutive blocks of samples as one."""
        offsets = np.cumsum([0, *(len(part.values) for part in parts[:-1])])
        return cls(
            np.concatenate([part.values for part in parts]),
            np.concatenate([part.starts + offset for part, offset in zip(parts, offsets, strict=True)]),
            np.concatenate([part.is_label for part in parts]),
        )

    def count_correct(self, totals: NDArray[np.float64]) -> int:
        """Return the number of samples whose label is the argmax of (candidates,) totals; ties go to the first class."""
        counts = np.diff(self.starts, append=len(totals))
        highest = np.maximum.reduceat(totals, self.starts)
        leaders = np.where(totals == np.repeat(highest, counts), np.arange(len(totals)), len(totals))
        return int(self.is_label[np.minimum.reduceat(leaders, self.starts)].sum())


def greedy_accuracy(
    classes: CandidateClasses, true_probabilities: NDArray[np.floating], max_picks: int
) -> MemberWeights:
    """Return the weights of greedy selection by the accuracy; ties are resolved by the lower log loss."""
    members, count = classes.values.shape[1], len(classes.starts)
    class_totals, true_total, picks = np.zeros(len(classes.values)), np.zeros(count), []
    reached: list[tuple[float, ...]] = []
    for size in range(1, max_picks + 1):
        candidates = [
            (
                -classes.count_correct(class_totals + classes.values[:, member]),
                float(-np.log((true_total + true_probabilities[:, member]) / size).mean()),
            )
            for member in range(members)
        ]
        picks.append(min(range(members), key=candidates.__getitem__))
        reached.append(candidates[picks[-1]])
        class_totals += classes.values[:, picks[-1]]
        true_total += true_probabilities[:, picks[-1]]
    return _best_prefix(picks, reached, members)


def _best_prefix(picks: Sequence[int], reached: Sequence[tuple[float, ...]], members: int) -> MemberWeights:
    """Return the weights after the best step; the last number of each tuple in `reached` is the loss."""
    best = min(range(len(picks)), key=reached.__getitem__)
    counts = np.bincount(picks[: best + 1], minlength=members)
    return MemberWeights(counts / counts.sum(), reached[best][-1])


def _log_loss_derivatives(
    true_probabilities: NDArray[np.floating], weights: NDArray[np.float64]
) -> tuple[float, NDArray[np.float64], NDArray[np.float64]]:
    """Return the mean log loss of a mixture, its negative gradient, and its (members, members) Hessian."""
    members, count = true_probabilities.shape[1], len(true_probabilities)
    loss, gradient, hessian = 0.0, np.zeros(members), np.zeros((members, members))
    for start in range(0, count, _BLOCK_ROWS):
        block = true_probabilities[start : start + _BLOCK_ROWS].astype(np.float64)
        mixture = block @ weights
        loss -= float(np.log(mixture).sum())
        block /= mixture[:, None]
        gradient += block.sum(axis=0)
        hessian += block.T @ block
    return loss / count, gradient / count, hessian / count
