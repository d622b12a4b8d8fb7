"""The evidence on which advice rests: which perturbations the network is sensitive to, and which the data contain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from choral.analysis.probe_curves import ProbeCurve, ProbeCurves, ProbePoint, ProbePredictions
from choral.analysis.probes.families import FAMILY_BY_NAME, Probe
from choral.analysis.resemblance import compute_resemblance
from choral.analysis.undo_probes import (
    SIGNIFICANCE_LEVEL,
    ChangedImages,
    UndoResult,
    compute_correctness,
    compute_log_odds,
    select_families,
)
from choral.config import AugmentConfig
from choral.metrics.estimate import difference_p_value
from choral.metrics.intervals import Interval
from choral.metrics.multiple_comparisons import holm

UNDONE_BY = {
    "smaller": "larger",
    "larger": "smaller",
    "rotation": "rotation",
    "translation": "translation",
    "shear": "shear",
    "perspective": "perspective",
    "darker": "lighter",
    "lighter": "darker",
    "low_contrast": "high_contrast",
    "high_contrast": "low_contrast",
    "pale": "vivid",
    "vivid": "pale",
    "hue": "hue",
    "blur": "sharpening",
    "noise": "blur",
    "hflip": "hflip",
    "vflip": "vflip",
    "rot90": "rot90",
}
"""The family that undoes a family: itself (the opposite angle or side) or another one. Nothing undoes occlusion or
compression."""
_INVERSE_BELOW = ("smaller", "darker", "low_contrast", "pale")  # 1 - x, undone by 1 + x
_INVERSE_ABOVE = ("larger", "lighter", "high_contrast", "vivid")  # 1 + x, undone by 1 - x


@dataclass(frozen=True)
class ProbeEvidence:
    """What probes of a run show.

    Attributes:
        probed: predictions and features on perturbed images.
        curves: of the same samples.
        augment: that the run was trained with.
        selected: results of the families that raise accuracy when they undo a variation, each on top of those before.
        individual: the result of every family that undoes another, by itself.
    """

    probed: ProbePredictions
    curves: ProbeCurves
    augment: AugmentConfig
    selected: Sequence[UndoResult]
    individual: Mapping[str, UndoResult]

    @classmethod
    def collect(cls, probed: ProbePredictions, curves: ProbeCurves, augment: AugmentConfig) -> ProbeEvidence:
        """Undo every probed family that has an inverse, and return the evidence; not for regression."""
        names = dict.fromkeys(UNDONE_BY[curve.family] for curve in curves.curves if curve.family in UNDONE_BY)
        families = {name: _read_images(probed, probed.of(name)) for name in names if probed.of(name)}
        log_odds, correctness = _confidence(probed, None), predicted_correctness(probed, None)
        selected, individual = select_families(log_odds, correctness, families, probed.ledger.keys)
        return cls(probed, use_interval_p_values(curves), augment, selected, individual)

    @property
    def has_features(self) -> bool:
        """Whether resemblance can be measured: classes, and features in the ledger."""
        meta = self.probed.ledger.meta
        return meta.task == "multiclass" and bool(meta.features)

    def undo_result(self, family: str) -> UndoResult | None:
        """Return the result of undoing a family by itself; None where nothing undoes it or that was not probed."""
        return self.individual.get(UNDONE_BY.get(family, ""))

    def selected_undo(self, family: str) -> UndoResult | None:
        """Return the selected result that undoes a family; None where it was not selected."""
        return next((result for result in self.selected if result.family == UNDONE_BY.get(family)), None)


def predicted_correctness(probed: ProbePredictions, probe: Probe | None) -> NDArray[np.float64]:
    """Return the (N,) correctness of predictions on images changed by a probe; None: unchanged."""
    return compute_correctness(probed.ledger.meta.task, probed.ledger.labels, probed.predictions(probe))


def find_shown_strength(family: str, undone: float) -> float:
    """Return up to which strength of a family the data vary, given the strength up to which they were undone.

    It is rounded up to a probed strength, since the variation is not known more finely; at most the largest.

    Args:
        family: whose strength is returned.
        undone: a strength of the family that undoes it.
    """
    strengths, inverse_strengths = FAMILY_BY_NAME[family].strengths, FAMILY_BY_NAME[UNDONE_BY[family]].strengths
    if family in _INVERSE_BELOW:
        shown = 1 - 1 / (1 + undone)
    elif family in _INVERSE_ABOVE:
        shown = undone / (1 - undone) if undone < 1 else np.inf
    elif UNDONE_BY[family] == family:
        shown = undone
    else:  # sharpening undoes blur, and blur undoes noise: as far along the family's own strengths
        share = (1 + max(number for number, value in enumerate(inverse_strengths) if value <= undone)) / len(
            inverse_strengths
        )
        shown = strengths[int(np.ceil(share * len(strengths))) - 1]
    return min((value for value in strengths if value >= shown - 1e-9), default=strengths[-1])


def find_sensitive_point(curve: ProbeCurve, strength: float) -> ProbePoint | None:
    """Return the point with the largest drop up to a strength, if it is significant after Holm's correction."""
    points = [point for point in curve.points if point.strength <= strength + 1e-9]
    worst = max(points, key=lambda point: point.drop, default=None)
    return worst if worst is not None and is_significant(worst) else None


def is_significant(point: ProbePoint) -> bool:
    """Whether the metric drops significantly at a point."""
    return point.drop > 0 and point.p_adjusted < SIGNIFICANCE_LEVEL


def use_interval_p_values(curves: ProbeCurves) -> ProbeCurves:
    """Return curves in which families with two directions have the p values of their intervals alone.

    The exact sign test counts samples that change sides. Where half of the images are rotated, rotating all of them either
    way corrects some and breaks more: as many may change to either side, and still accuracy drops a lot.
    """

    def p_value(curve: ProbeCurve, point: ProbePoint) -> float:
        if not FAMILY_BY_NAME[curve.family].both:
            return point.p
        return difference_p_value(Interval(point.drop, point.drop_low, point.drop_high))

    adjusted = iter(holm([p_value(curve, point) for curve in curves.curves for point in curve.points]))
    changed = [
        replace(curve, points=tuple(replace(point, p_adjusted=next(adjusted)) for point in curve.points))
        for curve in curves.curves
    ]
    return replace(curves, curves=tuple(changed))


def compute_min_resemblance(probed: ProbePredictions, family: str, strength: float) -> float:
    """Return how much images perturbed so resemble unchanged ones of their class, 0 to 1; of two directions the least."""
    before, labels = probed.features(None), probed.ledger.labels
    probes = [probe for probe in probed.of(family) if probe.strength == strength]
    return min(compute_resemblance(before, probed.features(probe), labels) for probe in probes)


def compute_other_class_share(probed: ProbePredictions, probe: Probe | None) -> float:
    """Return the share of images that, perturbed, are nearest to an unchanged image of another class.

    Nearest in the network's features, the image itself excluded: a 6 rotated into a 9 lies among the 9s. One minus this
    share is the accuracy of the nearest-neighbour classifier (Cover and Hart 1967).
    """
    images, changed = probed.features(None).astype(np.float64), probed.features(probe).astype(np.float64)
    distances = (images**2).sum(axis=1)[None] - 2 * changed @ images.T
    np.fill_diagonal(distances, np.inf)
    labels = probed.ledger.labels
    return float((labels[distances.argmin(axis=1)] != labels).mean())


def _read_images(probed: ProbePredictions, probes: tuple[Probe, ...]) -> ChangedImages:
    return ChangedImages(
        np.array([probe.strength for probe in probes]),
        np.stack([_confidence(probed, probe) for probe in probes]),
        np.stack([predicted_correctness(probed, probe) for probe in probes]),
    )


def _confidence(probed: ProbePredictions, probe: Probe | None) -> NDArray[np.float64]:
    return compute_log_odds(probed.ledger.meta.task, probed.predictions(probe))
