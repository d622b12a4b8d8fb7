"""Where a training run stands."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

LOWER_IS_BETTER = ("log_loss", "mae", "rmse")


@dataclass(frozen=True)
class TrainState:
    """Where a training run stands."""

    step: int = 0
    """Optimizer steps made."""
    validated_step: int = 0
    """The step of the last validation, and what it found:"""
    report: dict[str, float] = field(default_factory=dict)
    best_step: int = -1
    best_value: float | None = None
    """Of the metric that chooses the best checkpoint; higher is better. None: not validated yet."""
    seconds: float = 0.0
    """Spent training, over all starts of the run."""

    def advance(self, seconds: float) -> TrainState:
        """Return the state one step later."""
        return replace(self, step=self.step + 1, seconds=self.seconds + seconds)

    def validated(self, report: dict[str, float], metric: str) -> TrainState:
        """Return the state after a validation; `metric` chooses the best, and the first one is the best so far."""
        value = -report[metric] if metric in LOWER_IS_BETTER else report[metric]
        state = replace(self, validated_step=self.step, report=report)
        if self.best_value is not None and not value > self.best_value:
            return state
        return replace(state, best_step=self.step, best_value=value)

    def is_due(self, every: float, total: int) -> bool:
        """Whether a multiple of `every` steps (fractions allowed) has just been reached, or the last step."""
        return self.step > 0 and (self.step == total or int(self.step / every) > int((self.step - 1) / every))
