"""Where a training run stands."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from choral.runs.checkpoints import EMA, MODEL, SOUP

LOWER_IS_BETTER = ("log_loss", "mae", "rmse")
VARIANTS = {"": MODEL, "ema_": EMA, "soup_": SOUP}
"""What stands before the keys of a report on further weights, and the file of a checkpoint that holds them."""


@dataclass(frozen=True)
class TrainState:
    """Where a training run stands."""

    step: int = 0
    """Optimizer steps made."""
    skipped: int = 0
    """Attempts at a step whose gradient overflowed fp16; each was made again with a smaller loss scale."""
    validated_step: int = 0
    """The step of the last validation, and what it found:"""
    report: dict[str, float] = field(default_factory=dict)
    best_step: int = -1
    best_value: float | None = None
    """Of the metric that chooses the best checkpoint; higher is better. None: not validated yet."""
    best_weights: str = MODEL
    """Which of the checkpoint's weights are the best."""
    seconds: float = 0.0
    """Spent training, over all starts of the run."""

    def advance(self, seconds: float, skipped: int = 0) -> TrainState:
        """Return the state one step later."""
        return replace(self, step=self.step + 1, seconds=self.seconds + seconds, skipped=self.skipped + skipped)

    def validated(self, report: Mapping[str, float], metric: str) -> TrainState:
        """Return the state after a validation at its step.

        Args:
            report: metrics by name, those of averaged weights with their prefix; added to what the step's report holds.
            metric: chooses the best weights. The first whose metric is finite are the best so far; later ones must be
                better than those.
        """
        merged = {**self.report, **report} if self.validated_step == self.step else dict(report)
        state = replace(self, validated_step=self.step, report=merged)
        for prefix, weights in VARIANTS.items():
            if prefix + metric in report:
                value = report[prefix + metric] * (-1 if metric in LOWER_IS_BETTER else 1)
                if math.isfinite(value) and (state.best_value is None or value > state.best_value):
                    state = replace(state, best_step=self.step, best_value=value, best_weights=weights)
        return state

    def is_due(self, every: float, total: int) -> bool:
        """Whether a multiple of `every` steps (fractions allowed) has just been reached, or the last step."""
        return self.step > 0 and (self.step == total or int(self.step / every) > int((self.step - 1) / every))

    def out_of_patience(self, steps: float) -> bool:
        """Whether the last validation found nothing better than one that lies `steps` or more before it; 0: never.

        Where no validation has found a finite value yet, the start counts as the best one.
        """
        return steps > 0 and self.validated_step - max(self.best_step, 0) >= steps
