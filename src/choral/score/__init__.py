"""Numbers from predictions: metrics a sample, and intervals around their means. Arrays in, numbers out, no torch."""

from choral.score.intervals import Interval, bootstrap, paired_bootstrap
from choral.score.metrics import correct, log_losses, top_class

__all__ = ["Interval", "bootstrap", "correct", "log_losses", "paired_bootstrap", "top_class"]
