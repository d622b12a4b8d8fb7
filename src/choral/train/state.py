"""Where a training run stands."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class TrainState:
    """Where a training run stands."""

    step: int = 0
    """Optimizer steps made."""
    best_step: int = -1
    best_value: float = float("-inf")
    """Of the metric that chooses the best checkpoint; higher is better."""
    seconds: float = 0.0
    """Spent training, over all starts of the run."""

    def advance(self, seconds: float) -> TrainState:
        """Return the state one step later."""
        return replace(self, step=self.step + 1, seconds=self.seconds + seconds)

    def is_due(self, every: float, total: int) -> bool:
        """Whether a multiple of `every` steps (fractions allowed) has just been reached, or the last step."""
        return self.step == total or int(self.step / every) > int((self.step - 1) / every)
