"""Numbers from predictions: metrics a sample, and intervals around their means. Arrays in, numbers out, no torch."""

from choral.metrics.intervals import Interval, bootstrap, paired_bootstrap
from choral.metrics.per_sample import correct, log_losses, top_class

__all__ = ["Interval", "bootstrap", "correct", "log_losses", "paired_bootstrap", "top_class"]
