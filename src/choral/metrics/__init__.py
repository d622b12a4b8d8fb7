"""Metrics with confidence intervals: NumPy arrays in, numbers out. No torch, no files, no config.

In: labels and predictions of N samples, (N, C) probabilities or (N, T) numbers. Out: metrics of the whole split and of each
class, label or target, each with a 95 % interval; calibration, conformal sets, decision thresholds.

Read `metric_report.py` first: `compute_metric_report` computes everything `choral score --of` prints. To add a metric:

1. multiclass: return it from `ClassMetrics.compute_overall` (class_metrics.py), for a (draws, N) array of how often
   each draw holds each sample;
   multilabel: `MultilabelMetrics` (multilabel_metrics.py); regression: `RegressionMetrics` (regression_metrics.py);
2. add its name to `METRIC_NAMES` in metric_report.py, at the place where reports list it; unlisted names are dropped. The
   bootstrap, the paired differences and the slices follow by themselves; a proportion also belongs in
   `PROPORTION_METRICS` (proportions.py), one from ranks in `compute_rankings` and
   `RANKING_METRICS`, one per class in `compute_by_class` and `CLASS_METRIC_NAMES`;
3. give it a heading in scoring/predictor_table.py and check it against scikit-learn in tests/metrics/test_metric_report.py.

Other files: `intervals` (bootstrap of means), `estimate` (bootstrap of anything else), `calibration_error` and
`debiased_calibration` (ECE), `conformal`, `decision`, `selective` (accuracy against coverage) and `small_sample_intervals`
(slices).
"""

from choral.metrics.intervals import Interval, bootstrap, paired_bootstrap
from choral.metrics.per_sample import correct, log_losses, top_class

__all__ = ["Interval", "bootstrap", "correct", "log_losses", "paired_bootstrap", "top_class"]
