"""What probes say: by how much the answers of a run get worse, family by family and strength by strength.

Read from RUN/probes/SPLIT.parquet, which `choral probe` leaves. All intervals are of the same draws of samples, so that a
drop is compared in pairs: what is hard anyway is hard before and after.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from choral.analysis.probes.families import BY_NAME, IDENTITY, Family, Probe
from choral.analysis.probes.plan import is_of, probe_path, probes_in
from choral.analysis.results import plain
from choral.config import Config
from choral.core.errors import ChoralError, DataError
from choral.ensembles.score_rows import Numbers, numbers
from choral.inference.evaluation_plan import evaluation_of
from choral.inference.ledger import Ledger
from choral.inference.trained_models import find_trained_models
from choral.metrics.estimate import Estimate, bounded, p_of
from choral.metrics.multiple_comparisons import holm
from choral.metrics.per_sample import correct, log_losses, top_class
from choral.runs.run_dir import RunDir
from choral.scoring.stored_predictor import LESS_IS_BETTER, METRICS, Record, estimates_of


@dataclass(frozen=True)
class Point:
    """The answers at one strength.

    Attributes:
        strength: in the unit of the curve; larger is farther from the unchanged image.
        value, low, high: of the metric, with its 95 % interval.
        drop, drop_low, drop_high: by how much it is worse than of the same samples unchanged; above 0 is worse, whichever
            way the metric counts.
        p: that of no difference: from the interval, and of classes no smaller than that of an exact test of signs of the
            samples that changed sides (McNemar's, where there is one direction), else than such a test can give.
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
class Curve:
    """One family of changes.

    Attributes:
        family: its name, one of `choral.analysis.probes.families.FAMILIES`.
        key: of `augment`, in whose unit strengths are; "": there is none.
        unit: behind strengths, "" of factors and of what is made or not.
        text: what is done, x being the strength.
        points: strengths ascending; the unchanged images are not among them.
    """

    family: str
    key: str
    unit: str
    text: str
    points: tuple[Point, ...]

    @property
    def worst(self) -> Point:
        """The point with the largest drop, of equal ones the first."""
        return max(self.points, key=lambda point: point.drop)


@dataclass(frozen=True)
class Curves:
    """All that was probed.

    Attributes:
        run, split: names.
        predictor: whose answers these are: soft (of numbers, mean) over all members, or of a run of one network
            member/NAME; without test-time views.
        metric: accuracy, mean_ap or rmse.
        n: samples that were probed.
        total: samples of the split; more than n where a part of them was chosen, or some could not be read.
        unperturbed: the metric of the same n samples, unchanged.
        curves: one a family.
        evaluation: fingerprint of the networks, as the run's own ledgers have it.
        comparisons: points of all families that were probed, for which p values are adjusted, also where some are left out.
    """

    run: str
    split: str
    predictor: str
    metric: str
    n: int
    total: int
    unperturbed: Numbers
    curves: tuple[Curve, ...]
    evaluation: str
    comparisons: int

    @property
    def higher_is_better(self) -> bool:
        """Of the metric."""
        return self.metric not in LESS_IS_BETTER

    def of(self, families: Sequence[str]) -> Curves:
        """Return the curves of some families, by name; none: all."""
        return replace(self, curves=tuple(curve for curve in self.curves if not families or curve.family in families))

    def curve(self, family: str) -> Curve | None:
        """Return the curve of a family, None where it was not probed."""
        return next((curve for curve in self.curves if curve.family == family), None)

    def to_json(self) -> dict[str, Any]:
        """Return all of it as plain JSON."""
        found: dict[str, Any] = plain(self)
        return found


class Probed:
    """What was said about changed images; columns are read when they are asked for.

    Attributes:
        ledger: keys (sorted) and labels of the N samples, task and classes.
        voice: its only column: the mean over all networks, named as `choral score` does.
        probes: that there are, families in their order, strengths ascending.
    """

    def __init__(self, ledger: Ledger) -> None:
        self.ledger, self.model = ledger, ledger.members[0]
        self.probes: tuple[Probe, ...] = probes_in(ledger.views)

    @cached_property
    def families(self) -> tuple[Family, ...]:
        """The families that were probed."""
        return tuple(BY_NAME[name] for name in dict.fromkeys(probe.family for probe in self.probes))

    def of(self, family: str) -> tuple[Probe, ...]:
        """Return the probes of a family."""
        return tuple(probe for probe in self.probes if probe.family == family)

    def predictions(self, probe: Probe | None) -> NDArray[np.float32]:
        """Return (N, C) predictions, the mean over all networks, of images changed by a probe; None: unchanged."""
        return self.ledger.predictions(self.model, IDENTITY if probe is None else probe.name)

    def features(self, probe: Probe | None) -> NDArray[np.float32]:
        """Return (N, 64) features of images changed by a probe; None: unchanged.

        What goes into the last layer of each network, of length 1, through a random projection that keeps distances about
        as they are, and the mean over the networks; see `choral.analysis.probes.feature_sketch`.
        """
        return self.ledger.features(self.model, IDENTITY if probe is None else probe.name)


def probe_predictions(folder: RunDir, config: Config, split: str) -> Probed | None:
    """Return what was said about the changed images of a split.

    None: they were not probed, or by other networks than the run has now, or than its ledger of the split is of.

    Args:
        folder, config: of the run.
        split: such as val.
    """
    path = probe_path(folder, split)
    if not path.is_file():
        return None
    try:
        probed = Probed(Ledger.open(path))
        evaluation = _evaluation(folder, config, split)
    except ChoralError:
        return None
    return probed if is_of(probed.ledger.meta, evaluation) else None


def curves_of(folder: RunDir, config: Config, split: str) -> Curves | None:
    """Return the curves of a run; None as `probe_predictions`."""
    probed = probe_predictions(folder, config, split)
    return None if probed is None else make_curves(probed, folder.name)


def make_curves(probed: Probed, run: str) -> Curves:
    """Return the curves of what was said about changed images.

    Args:
        probed: of at least one sample.
        run: its name.

    Raises:
        DataError: there is no sample.
    """
    ledger = probed.ledger
    if not len(ledger):
        raise DataError(f"{ledger.path}: holds no sample, nothing can be said")
    task, labels = ledger.meta.task, ledger.labels
    names = [IDENTITY, *(probe.name for probe in probed.probes)]
    records = {name: _record(task, labels, ledger.predictions(probed.model, name)) for name in names}
    metric = METRICS[task][0]
    found = estimates_of(task, labels, records)[metric]
    curves = []
    for family in probed.families:
        points = []
        for strength in dict.fromkeys(probe.strength for probe in probed.of(family.name)):
            asked = [probe.name for probe in probed.of(family.name) if probe.strength == strength]
            after = _mean(metric, [found[name] for name in asked])
            if task == "multiclass":
                p = _sign_test(labels, records[IDENTITY], [records[name] for name in asked])
            else:  # the least that a test of signs of so many samples can give: a few of them do not vary among themselves
                p = min(1.0, 2.0 ** (1 - len(ledger)))
            points.append(_point(strength, metric, found[IDENTITY], after, p))
        curves.append(Curve(family.name, family.key, family.unit, family.text, tuple(points)))
    adjusted = iter(holm([point.p for curve in curves for point in curve.points]))
    return Curves(
        run=run,
        split=ledger.meta.split,
        predictor=probed.model,
        metric=metric,
        n=len(ledger),
        total=len(ledger) + ledger.meta.skipped,
        unperturbed=numbers(found[IDENTITY].interval),
        curves=tuple(
            replace(curve, points=tuple(replace(point, p_adjusted=next(adjusted)) for point in curve.points))
            for curve in curves
        ),
        evaluation=ledger.meta.evaluation.partition("-")[0],
        comparisons=sum(len(curve.points) for curve in curves),
    )


def _record(task: str, labels: NDArray[Any], said: NDArray[np.float32]) -> Record:
    if task != "multiclass":
        return Record(said)
    return Record(top_class(said).astype(np.int32), log_losses(labels, said))


def _mean(metric: str, estimates: Sequence[Estimate]) -> Estimate:
    """Return the mean of a metric over both directions, draw by draw."""
    if len(estimates) == 1:
        return estimates[0]
    value = sum(estimate.value for estimate in estimates) / len(estimates)
    draws = np.mean([estimate.draws for estimate in estimates], axis=0)
    return bounded(value, draws) if metric == "mean_ap" else Estimate(value, draws)


def _point(strength: float, metric: str, before: Estimate, after: Estimate, least: float) -> Point:
    """Return a point whose p value is no smaller than `least`."""
    worse = after.minus(before) if metric in LESS_IS_BETTER else before.minus(after)
    at = after.interval
    p = max(least, p_of(worse))
    return Point(strength, at.value, at.low, at.high, worse.value, worse.low, worse.high, p, p_adjusted=1.0)


def _sign_test(labels: NDArray[Any], before: Record, after: Sequence[Record]) -> float:
    """Return the exact p value of as many samples that are right more often as such that are less often."""
    from scipy.special import bdtr

    right = np.mean([correct(labels, record.predictions) for record in after], axis=0)
    change = right - correct(labels, before.predictions)
    gained, lost = int((change > 0).sum()), int((change < 0).sum())
    return min(1.0, 2 * float(bdtr(min(gained, lost), gained + lost, 0.5)))


def _evaluation(folder: RunDir, config: Config, split: str) -> str:
    """Return the fingerprint of the networks that probes have to be of."""
    ledger = folder.predictions / f"{split}.parquet"
    if ledger.is_file():
        return Ledger.open(ledger).meta.evaluation
    return evaluation_of(find_trained_models(folder, config)[0], config.train.precision)
