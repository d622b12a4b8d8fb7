"""The state of a training run, which a checkpoint stores."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from choral.runs.checkpoints import EMA_FILE, MODEL_FILE, SOUP_FILE

LOWER_IS_BETTER = ("log_loss", "mae", "rmse")
WEIGHT_VARIANTS = {"": MODEL_FILE, "ema_": EMA_FILE, "soup_": SOUP_FILE}
"""Prefix of a metric's name in reports to the checkpoint's file of the weights that were measured."""


@dataclass(frozen=True)
class TrainState:
    """How far a training run has come, and its best validation so far."""

    step: int = 0
    """Optimizer steps made."""
    skipped: int = 0
    """Attempts at a step whose gradient overflowed fp16; each was repeated with a smaller loss scale."""
    validated_step: int = 0
    """Step of the last validation."""
    report: dict[str, float] = field(default_factory=dict)
    """Metrics of the last validation by name."""
    best_step: int = -1
    best_value: float | None = None
    """Value of the metric that chooses the best checkpoint, negated if lower is better; None before any validation."""
    best_weights: str = MODEL_FILE
    """The file of the best checkpoint that holds the best weights."""
    seconds: float = 0.0
    """Time spent in training steps, over all starts of the run."""

    def advance(self, seconds: float, skipped: int = 0) -> TrainState:
        """Return the state one step later."""
        return replace(self, step=self.step + 1, seconds=self.seconds + seconds, skipped=self.skipped + skipped)

    def with_validation(self, report: Mapping[str, float], metric: str) -> TrainState:
        """Return the state after a validation at its step.

        Args:
            report: metrics by name, those of averaged weights with their prefix; merged with an earlier report of the
                same step.
            metric: chooses the best weights: the first with a finite value, then each that is strictly better.
        """
        merged = {**self.report, **report} if self.validated_step == self.step else dict(report)
        state = replace(self, validated_step=self.step, report=merged)
        for prefix, weights in WEIGHT_VARIANTS.items():
            if prefix + metric in report:
                value = report[prefix + metric] * (-1 if metric in LOWER_IS_BETTER else 1)
                if math.isfinite(value) and (state.best_value is None or value > state.best_value):
                    state = replace(state, best_step=self.step, best_value=value, best_weights=weights)
        return state

    def is_due(self, every: float, total: int) -> bool:
        """Whether something done every `every` steps (fractions allowed), and after step `total`, is due; never at step 0."""
        return self.step > 0 and (self.step == total or int(self.step / every) > int((self.step - 1) / every))

    def out_of_patience(self, steps: float) -> bool:
        """Whether the best validation lies `steps` or more before the last one; 0: never.

        Until a validation finds a finite value, step 0 counts as the best one.
        """
        return steps > 0 and self.validated_step - max(self.best_step, 0) >= steps
