"""`PredictionPolicy.combine` as a torch module, whose constants are buffers, so that it is exported with the models.

Sums over members are taken in double precision, as in NumPy: ties are the same, and are broken in the same way.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from choral.ensembles.rules import MIN_PROBABILITY, VOTE_TOLERANCE, Combiner
from choral.scoring.calibration_maps import CalibrationMap
from choral.scoring.policy import PredictionPolicy

_NEXT = 1 + 0.7 * 2.0**-23  # times this, a float32 rounds to the next one: ONNX has no nextafter


class CombinationModule(nn.Module):
    """The rule, its temperature, and the calibration map of an answering."""

    def __init__(self, policy: PredictionPolicy) -> None:
        super().__init__()
        self.rule = RuleModule(policy.rule)
        self.map = CalibrationModule(policy.calibration)

    def forward(self, own: Tensor) -> Tensor:
        """Return the (B, C) float32 calibrated predictions of (M, B, C) float32 ones, the members' predictions."""
        combined: Tensor = self.map(self.rule(own))
        return combined


class RuleModule(nn.Module):
    """A `Combiner` with its parameters as buffers."""

    weights: Tensor
    biases: Tensor

    def __init__(self, combiner: Combiner) -> None:
        super().__init__()
        self.combiner = combiner
        # Of stack, NumPy multiplies in single precision.
        exact = torch.float32 if combiner.rule == "stack" else torch.float64
        register_constant(self, "weights", torch.tensor(combiner.weights, dtype=exact).view(-1, 1, 1))
        register_constant(self, "biases", torch.tensor(combiner.biases, dtype=torch.float32))

    def forward(self, stack: Tensor) -> Tensor:
        """Return (B, C) float32 of (M, B, C) float32."""
        rule, task, temperature = self.combiner.rule, self.combiner.task, self.combiner.temperature
        if rule == "hard":
            worth = torch.ones(len(stack), 1, 1, dtype=torch.float64, device=stack.device)
            votes = count_votes(stack, worth)
            return make_winner_largest((votes / len(stack)).float(), select_winners(votes, stack))
        if rule == "boosting":
            votes = count_votes(stack, self.weights)
            probabilities = make_winner_largest(votes.softmax(dim=1).float(), select_winners(votes, stack))
            if temperature == 1:
                return probabilities
            return make_winner_largest(apply_temperature(probabilities, temperature, task), probabilities.argmax(dim=1))
        return apply_temperature(self._mixture(stack), temperature, task)

    def _mixture(self, stack: Tensor) -> Tensor:
        rule, task = self.combiner.rule, self.combiner.task
        if rule == "median":
            return _median(stack)
        if rule == "geometric":
            return to_probabilities(log_scores(stack, task).double().mean(dim=0).float(), task)
        if rule in ("weighted", "greedy"):
            return (self.weights * stack.double()).sum(dim=0).float()
        if rule == "stack":
            groups = torch.stack([_mean([stack[place] for place in group]) for group in self.combiner.groups])
            return to_probabilities((self.weights * log_scores(groups, task)).sum(dim=0) + self.biases, task)
        assert rule in ("soft", "mean"), f"no rule {rule}"
        return _mean(list(stack.unbind(0)))


class CalibrationModule(nn.Module):
    """A `CalibrationMap` with its parameters as buffers."""

    weights: Tensor
    biases: Tensor
    knots: Tensor
    lines: Tensor

    def __init__(self, calibration: CalibrationMap) -> None:
        super().__init__()
        self.method, self.task, self.temperature = calibration.method, calibration.task, calibration.temperature
        register_constant(self, "weights", torch.tensor(calibration.weights, dtype=torch.float32))
        register_constant(self, "biases", torch.tensor(calibration.biases, dtype=torch.float32))
        if calibration.method == "isotonic":
            knots, lines = _pieces(calibration)
            register_constant(self, "knots", torch.from_numpy(knots))
            register_constant(self, "lines", torch.from_numpy(lines))

    def forward(self, predictions: Tensor) -> Tensor:
        """Return (B, C) float32 of (B, C) float32."""
        if self.method == "temperature":
            return apply_temperature(predictions, self.temperature, self.task)
        if self.method == "vector":
            return to_probabilities(log_scores(predictions, self.task) * self.weights + self.biases, self.task)
        if self.method == "isotonic":
            mapped = self._interpolated(predictions.double())
            if self.task == "multiclass":
                mapped = mapped / mapped.sum(dim=1, keepdim=True)
            return mapped.float()
        return predictions

    def _interpolated(self, predictions: Tensor) -> Tensor:
        """Return (B, C) of (B, C) float64: the line of the piece that each one lies in, by how many knots are below."""
        classes, pieces, _ = self.lines.shape
        piece = (predictions[:, :, None] >= self.knots).long().sum(dim=2)
        place = piece + pieces * torch.arange(classes, device=predictions.device)
        start, value, slope = self.lines.view(classes * pieces, 3)[place].unbind(dim=2)
        return value + slope * (predictions - start)


def register_constant(module: nn.Module, name: str, values: Tensor) -> None:
    """Give a module a buffer, unless it is empty: empty ones have no memory of their own, and cannot be saved."""
    if values.numel():
        module.register_buffer(name, values)


def log_scores(probabilities: Tensor, task: str) -> Tensor:
    """See `choral.ensembles.rules.log_scores`."""
    logs = probabilities.clamp(min=MIN_PROBABILITY).log()
    return logs - (1 - probabilities).clamp(min=MIN_PROBABILITY).log() if task == "multilabel" else logs


def to_probabilities(scores: Tensor, task: str) -> Tensor:
    """Return the softmax over the classes, of multilabel the sigmoid, of (B, C) scores."""
    if task == "multilabel":  # close to 1, single precision would lose digits that later logarithms need
        return scores.double().sigmoid().float()
    return scores.softmax(dim=1)


def apply_temperature(predictions: Tensor, temperature: float, task: str) -> Tensor:
    """See `choral.ensembles.rules.apply_temperature`."""
    if temperature == 1:
        return predictions
    return to_probabilities(log_scores(predictions, task) / temperature, task)


def count_votes(stack: Tensor, worth: Tensor) -> Tensor:
    """Return the (B, C) float64 weighted vote counts of each class, from (M, B, C) predictions.

    Args:
        stack: predictions; a member votes for its class of the highest value, among equals for the first.
        worth: (M, 1, 1) float64 weight of each member's vote.
    """
    classes = torch.arange(stack.shape[2], device=stack.device)
    ballots = stack.argmax(dim=2, keepdim=True) == classes
    return (ballots.double() * worth).sum(dim=0)


def select_winners(votes: Tensor, stack: Tensor) -> Tensor:
    """Return the (B,) int64 winning classes: of the leading ones that of the highest mean; among equals the first."""
    ahead = votes >= votes.amax(dim=1, keepdim=True) - VOTE_TOLERANCE
    mean = stack.double().mean(dim=0)
    return torch.where(ahead, mean, torch.full_like(mean, -1.0)).argmax(dim=1)


def make_winner_largest(values: Tensor, winners: Tensor) -> Tensor:
    """Return (B, C) float32 values, that of each row's winner raised to the next float32 where another comes first."""
    classes = torch.arange(values.shape[1], device=values.device)
    short = (classes == winners[:, None]) & (values.argmax(dim=1) != winners)[:, None]
    above = (values.amax(dim=1, keepdim=True).double() * _NEXT).float()
    return torch.where(short, above, values)


def _mean(members: Sequence[Tensor]) -> Tensor:
    """Return the float32 mean of float32 tensors of one shape, taken in double precision."""
    return torch.stack([values.double() for values in members]).mean(dim=0).float()


def _median(stack: Tensor) -> Tensor:
    count = len(stack)
    ordered = stack.sort(dim=0).values
    return (ordered[(count - 1) // 2] + ordered[count // 2]) / 2


def _pieces(calibration: CalibrationMap) -> tuple[np.ndarray, np.ndarray]:
    """Return the knots, (C, K) float64 filled up with infinities, and of each piece its line, (C, K + 1, 3) float64.

    Piece number k lies above k knots. Its line is (start, value at start, slope).
    """
    longest = max(len(before) for before, _ in calibration.knots)
    knots = np.full((len(calibration.knots), longest), np.inf)
    lines = np.zeros((len(calibration.knots), longest + 1, 3))
    for column, (before, after) in enumerate(calibration.knots):
        x, y = np.array(before), np.array(after)
        knots[column, : len(x)] = x
        lines[column, 0] = x[0], y[0], 0
        lines[column, len(x)] = x[-1], y[-1], 0
        rises = np.diff(y) / np.diff(x)
        lines[column, 1 : len(x)] = np.stack([x[:-1], y[:-1], rises], axis=1)
    return knots, lines
