"""Sensitivity curves: how much a run's metric drops on perturbed images, by family and strength.

Computed from RUN/probes/SPLIT.parquet, which `choral probe` writes. All intervals use the same bootstrap draws, so drops are
paired: a sample that is hard anyway is hard before and after.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from choral.analysis.json_values import to_plain_json
from choral.analysis.probes.families import FAMILY_BY_NAME, IDENTITY, Family, Probe
from choral.analysis.probes.plan import matches_evaluation, parse_probes, probe_path
from choral.config import Config
from choral.core.errors import ChoralError, DataError
from choral.ensembles.score_rows import IntervalDict, interval_to_dict
from choral.inference.evaluation_plan import compute_evaluation_hash
from choral.inference.ledger import Ledger
from choral.inference.run_models import find_trained_models
from choral.metrics.estimate import Estimate, difference_p_value, logit_scale_estimate
from choral.metrics.multiple_comparisons import holm
from choral.metrics.per_sample import correct, log_losses, top_class
from choral.runs.run_dir import RunDir
from choral.scoring.stored_predictor import LOWER_IS_BETTER, METRICS, StoredPredictions, compute_estimates


@dataclass(frozen=True)
class ProbePoint:
    """The metric at one strength.

    Attributes:
        strength: in the unit of the curve; larger is farther from the unchanged image.
        value, low, high: of the metric, with its 95 % interval.
        drop, drop_low, drop_high: how much worse it is than on the same samples unchanged; above 0 is worse, also for
            metrics of which lower is better.
        p: of no drop, from the interval; for classes, at least that of an exact sign test of the samples that change sides
            (McNemar's test, where there is one direction), else at least the smallest that such a test can give.
        p_adjusted: after Holm's correction for all points of all curves.
    """

    strength: float
    value: float
    low: float
    high: float
    drop: float
    drop_low: float
    drop_high: float
    p: float
    p_adjusted: float


@dataclass(frozen=True)
class ProbeCurve:
    """The curve of one family of perturbations.

    Attributes:
        family: its name, from `choral.analysis.probes.families.FAMILIES`.
        key: of `augment`, in whose unit strengths are; "": there is none.
        unit: printed behind strengths; "" for factors, and for families without a strength.
        text: what is done to an image, x being the strength.
        points: strengths ascending, without the unchanged images.
    """

    family: str
    key: str
    unit: str
    text: str
    points: tuple[ProbePoint, ...]

    @property
    def worst(self) -> ProbePoint:
        """The point with the largest drop, of ties the first."""
        return max(self.points, key=lambda point: point.drop)


@dataclass(frozen=True)
class ProbeCurves:
    """The curves of all probed families.

    Attributes:
        run, split: names.
        predictor: soft (regression: mean) over all members, or member/NAME of a run of one network; without test-time
            views.
        metric: accuracy, mean_ap or rmse.
        n: samples that were probed.
        total: samples of the split; more than n where only some were probed, or some could not be read.
        unperturbed: the metric on the same n samples, unchanged.
        curves: one a family.
        evaluation: fingerprint of the networks, as in the run's ledgers.
        comparisons: points of all probed families, for which p values are adjusted even where some families are left out.
    """

    run: str
    split: str
    predictor: str
    metric: str
    n: int
    total: int
    unperturbed: IntervalDict
    curves: tuple[ProbeCurve, ...]
    evaluation: str
    comparisons: int

    @property
    def higher_is_better(self) -> bool:
        """Whether a larger metric is better."""
        return self.metric not in LOWER_IS_BETTER

    def of(self, families: Sequence[str]) -> ProbeCurves:
        """Return these curves for some families only, by name; no names: all."""
        return replace(self, curves=tuple(curve for curve in self.curves if not families or curve.family in families))

    def curve(self, family: str) -> ProbeCurve | None:
        """Return the curve of a family; None where it was not probed."""
        return next((curve for curve in self.curves if curve.family == family), None)

    def to_json(self) -> dict[str, Any]:
        """Return the curves as plain JSON."""
        content: dict[str, Any] = to_plain_json(self)
        return content


class ProbePredictions:
    """Predictions and features on perturbed images, read from the ledger column by column on demand.

    Attributes:
        ledger: keys (sorted) and labels of the N samples, task and classes.
        model: its only column: the mean over all networks, named as in `choral score`.
        probes: in the order of families, strengths ascending.
    """

    def __init__(self, ledger: Ledger) -> None:
        self.ledger, self.model = ledger, ledger.members[0]
        self.probes: tuple[Probe, ...] = parse_probes(ledger.views)

    @cached_property
    def families(self) -> tuple[Family, ...]:
        """The families that were probed."""
        return tuple(FAMILY_BY_NAME[name] for name in dict.fromkeys(probe.family for probe in self.probes))

    def of(self, family: str) -> tuple[Probe, ...]:
        """Return the probes of a family."""
        return tuple(probe for probe in self.probes if probe.family == family)

    def predictions(self, probe: Probe | None) -> NDArray[np.float32]:
        """Return (N, C) predictions, averaged over networks, on images perturbed by a probe; None: unchanged."""
        return self.ledger.predictions(self.model, IDENTITY if probe is None else probe.name)

    def features(self, probe: Probe | None) -> NDArray[np.float32]:
        """Return (N, 64) features of images perturbed by a probe; None: unchanged.

        The input of each network's last layer, scaled to length 1, through a random projection that roughly preserves
        distances, averaged over networks; see `choral.analysis.probes.feature_sketch`.
        """
        return self.ledger.features(self.model, IDENTITY if probe is None else probe.name)


def read_probe_predictions(folder: RunDir, config: Config, split: str) -> ProbePredictions | None:
    """Return the predictions on the perturbed images of a split.

    None where they were not probed, or with other networks than the run's, or than those of the split's ledger.

    Args:
        folder, config: of the run.
        split: such as val.
    """
    path = probe_path(folder, split)
    if not path.is_file():
        return None
    try:
        probed = ProbePredictions(Ledger.open(path))
        evaluation = _read_evaluation(folder, config, split)
    except ChoralError:
        return None
    return probed if matches_evaluation(probed.ledger.meta, evaluation) else None


def read_curves(folder: RunDir, config: Config, split: str) -> ProbeCurves | None:
    """Return the curves of a split of a run; None as in `read_probe_predictions`."""
    probed = read_probe_predictions(folder, config, split)
    return None if probed is None else compute_curves(probed, folder.name)


def compute_curves(probed: ProbePredictions, run: str) -> ProbeCurves:
    """Return the curves of predictions on perturbed images.

    Args:
        probed: of at least one sample.
        run: its name.

    Raises:
        DataError: the ledger is empty.
    """
    ledger = probed.ledger
    if not len(ledger):
        raise DataError(f"{ledger.path}: the ledger holds no samples, so there are no curves")
    task, labels = ledger.meta.task, ledger.labels
    names = [IDENTITY, *(probe.name for probe in probed.probes)]
    records = {name: _record(task, labels, ledger.predictions(probed.model, name)) for name in names}
    metric = METRICS[task][0]
    estimates = compute_estimates(task, labels, records)[metric]
    curves = []
    for family in probed.families:
        points = []
        for strength in dict.fromkeys(probe.strength for probe in probed.of(family.name)):
            views = [probe.name for probe in probed.of(family.name) if probe.strength == strength]
            after = _mean_estimate(metric, [estimates[name] for name in views])
            if task == "multiclass":
                p = _sign_test(labels, records[IDENTITY], [records[name] for name in views])
            else:  # the smallest that a sign test of so few samples can give; their bootstrap draws hardly vary
                p = min(1.0, 2.0 ** (1 - len(ledger)))
            points.append(_point(strength, metric, estimates[IDENTITY], after, p))
        curves.append(ProbeCurve(family.name, family.key, family.unit, family.text, tuple(points)))
    adjusted = iter(holm([point.p for curve in curves for point in curve.points]))
    return ProbeCurves(
        run=run,
        split=ledger.meta.split,
        predictor=probed.model,
        metric=metric,
        n=len(ledger),
        total=len(ledger) + ledger.meta.skipped,
        unperturbed=interval_to_dict(estimates[IDENTITY].interval),
        curves=tuple(
            replace(curve, points=tuple(replace(point, p_adjusted=next(adjusted)) for point in curve.points))
            for curve in curves
        ),
        evaluation=ledger.meta.evaluation.partition("-")[0],
        comparisons=sum(len(curve.points) for curve in curves),
    )


def _record(task: str, labels: NDArray[Any], predictions: NDArray[np.float32]) -> StoredPredictions:
    if task != "multiclass":
        return StoredPredictions(predictions)
    return StoredPredictions(top_class(predictions).astype(np.int32), log_losses(labels, predictions))


def _mean_estimate(metric: str, estimates: Sequence[Estimate]) -> Estimate:
    """Return the estimate of a metric averaged over both directions, draw by draw."""
    if len(estimates) == 1:
        return estimates[0]
    value = sum(estimate.value for estimate in estimates) / len(estimates)
    draws = np.mean([estimate.draws for estimate in estimates], axis=0)
    return logit_scale_estimate(value, draws) if metric == "mean_ap" else Estimate(value, draws)


def _point(strength: float, metric: str, before: Estimate, after: Estimate, least: float) -> ProbePoint:
    """Return a point whose p value is no smaller than `least`."""
    worse = after.minus(before) if metric in LOWER_IS_BETTER else before.minus(after)
    at = after.interval
    p = max(least, difference_p_value(worse))
    return ProbePoint(strength, at.value, at.low, at.high, worse.value, worse.low, worse.high, p, p_adjusted=1.0)


def _sign_test(labels: NDArray[Any], before: StoredPredictions, after: Sequence[StoredPredictions]) -> float:
    """Return the exact p value of as many samples becoming correct as becoming wrong."""
    from scipy.special import bdtr

    right = np.mean([correct(labels, record.predictions) for record in after], axis=0)
    change = right - correct(labels, before.predictions)
    gained, lost = int((change > 0).sum()), int((change < 0).sum())
    return min(1.0, 2 * float(bdtr(min(gained, lost), gained + lost, 0.5)))


def _read_evaluation(folder: RunDir, config: Config, split: str) -> str:
    """Return the fingerprint of the networks that probes must come from."""
    ledger = folder.predictions / f"{split}.parquet"
    if ledger.is_file():
        return Ledger.open(ledger).meta.evaluation
    return compute_evaluation_hash(find_trained_models(folder, config)[0], config.train.precision)
