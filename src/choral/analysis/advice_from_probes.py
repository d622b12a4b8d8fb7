"""Derives advice from probes: which families of augmentation a run should be trained with next.

A family is advised if three conditions hold, each measured on validation images:

1. The run is sensitive to it: accuracy drops significantly on perturbed images (`choral.analysis.probe_curves`). A family
   that undoes itself may cost nothing on average, as a flip does where half of the images are flipped; then 2. shows it.
2. The data contain it: undoing it corrects predictions, significantly (`choral.analysis.undo_probes`). The share of all
   errors that it corrects is its plausibility. Perturbations that change labels, or that validation images do not contain,
   correct nothing.
3. The run's augmentation does not cover it at that strength.

Both p values are after Holm's correction. The strength is how far images had to be changed back. Families are ordered by the
drop at that strength times the plausibility.

Where undoing corrects nothing, a network may still rely on something irrelevant, such as which way up an image is. Then a
family is advised that costs accuracy significantly at a strength at which perturbed images can hardly be told from others of
their class (`choral.analysis.resemblance`), since such images could occur; but only with enough errors for a gain to be seen.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from choral.analysis.advice import Advice, AdviceLine, RejectedFamily
from choral.analysis.advice_reasons import advice_note, rejection_reason, resemblance_reason, undo_reason
from choral.analysis.augment_coverage import find_covering_setting, widen_settings
from choral.analysis.probe_curves import ProbeCurve, ProbeCurves, ProbePoint, ProbePredictions
from choral.analysis.probe_evidence import (
    UNDONE_BY,
    ProbeEvidence,
    compute_min_resemblance,
    find_sensitive_point,
    find_shown_strength,
    is_significant,
    predicted_correctness,
)
from choral.analysis.probes.families import augment_settings
from choral.analysis.undo_probes import UndoResult
from choral.config import AugmentConfig
from choral.ensembles.score_rows import SEED, IntervalDict, interval_to_dict
from choral.metrics.intervals import bootstrap

MIN_RESEMBLANCE = 0.5
"""Resemblance from which a perturbation is plausible: half as many images as by chance lie next to one of the other kind."""
MIN_ERRORS = 6  # corrected without a loss they are significant, fewer are not: 2 x 0.5^5 > 0.05
_REGRESSION_NOTE = (
    "Nothing is advised: regression predictions have no confidence, so whether validation images contain a variation cannot "
    "be measured."
)


def make_advice(probed: ProbePredictions, curves: ProbeCurves, augment: AugmentConfig) -> Advice:
    """Return what the probes of a run advise.

    Args:
        probed, curves: of the same samples.
        augment: that the run was trained with.
    """
    advice = Advice(
        run=curves.run,
        split=curves.split,
        predictor=curves.predictor,
        metric=curves.metric,
        n=curves.n,
        lines=(),
        rejected=(),
        comparisons=0,
        note=_REGRESSION_NOTE,
        dataset=probed.ledger.meta.dataset,
        evaluation=curves.evaluation,
    )
    if probed.ledger.meta.task == "regression":
        return advice
    evidence = ProbeEvidence.collect(probed, curves, augment)
    lines = _undo_lines(evidence) if evidence.selected else _resemblance_lines(evidence)
    lines = _with_settings(sorted(lines, key=lambda line: -line.score), augment)
    advised = {line.family for line in lines}
    return replace(
        advice,
        lines=tuple(lines),
        rejected=tuple(
            RejectedFamily(curve.family, rejection_reason(curve, evidence))
            for curve in evidence.curves.curves
            if curve.family not in advised
        ),
        comparisons=len(evidence.individual),
        note=advice_note(lines, evidence),
    )


def _undo_lines(evidence: ProbeEvidence) -> list[AdviceLine]:
    """Return the families that the data contain, without settings yet."""
    errors = max(1.0 - float(predicted_correctness(evidence.probed, None).mean()), 1e-9)
    lines = []
    for curve in evidence.curves.curves:
        undo = evidence.selected_undo(curve.family)
        line = None if undo is None else _undo_line(curve, undo, errors, evidence.augment)
        if line is not None:
            lines.append(line)
    return lines


def _undo_line(curve: ProbeCurve, undo: UndoResult, errors: float, augment: AugmentConfig) -> AdviceLine | None:
    """Return the line of a family; None where the run is not sensitive to it, or covers it.

    Args:
        curve: of the family.
        undo: of the family that undoes it.
        errors: share of the predictions.
        augment: that the run was trained with.
    """
    strength = find_shown_strength(curve.family, undo.strength)
    point, gain = find_sensitive_point(curve, strength), interval_to_dict(bootstrap(undo.difference, seed=SEED))
    if point is None and UNDONE_BY[curve.family] == curve.family:
        # A variation in half of the images costs the other half what it gains these. So the gain of undoing is the drop.
        low, high = gain["low"], gain["high"]
        point = ProbePoint(strength, 0, 0, 0, gain["value"], low, high, undo.p, undo.p_adjusted)
    if point is None or find_covering_setting(augment, curve.family, strength):
        return None
    plausibility = min(1.0, gain["value"] / errors)
    return AdviceLine(
        family=curve.family,
        key=curve.key,
        value=None,
        settings={},
        strength=strength,
        unit=curve.unit,
        drop=_drop(point),
        p_drop=point.p_adjusted,
        evidence="undone",
        gain=gain,
        p_gain=undo.p_adjusted,
        plausibility=plausibility,
        score=point.drop * plausibility,
        reason=undo_reason(curve, point, undo, gain, plausibility),
    )


def _resemblance_lines(evidence: ProbeEvidence) -> list[AdviceLine]:
    """Return the families that cost accuracy though perturbed images resemble their class, without settings yet."""
    errors = round(float((1 - predicted_correctness(evidence.probed, None)).sum()))
    if not evidence.has_features or errors < MIN_ERRORS:
        return []
    lines = []
    for curve in evidence.curves.curves:
        for point in reversed(curve.points) if curve.key else ():
            if not is_significant(point) or find_covering_setting(evidence.augment, curve.family, point.strength):
                continue
            resemblance = compute_min_resemblance(evidence.probed, curve.family, point.strength)
            if resemblance >= MIN_RESEMBLANCE:
                lines.append(_resemblance_line(curve, point, resemblance, evidence.undo_result(curve.family)))
                break
    return lines


def _resemblance_line(curve: ProbeCurve, point: ProbePoint, resemblance: float, undo: UndoResult | None) -> AdviceLine:
    return AdviceLine(
        family=curve.family,
        key=curve.key,
        value=None,
        settings={},
        strength=point.strength,
        unit=curve.unit,
        drop=_drop(point),
        p_drop=point.p_adjusted,
        evidence="alike",
        gain=None if undo is None else interval_to_dict(bootstrap(undo.difference, seed=SEED)),
        p_gain=None if undo is None else undo.p_adjusted,
        plausibility=resemblance,
        score=point.drop * resemblance,
        reason=resemblance_reason(curve, point, resemblance),
    )


def _with_settings(lines: list[AdviceLine], augment: AugmentConfig) -> list[AdviceLine]:
    """Return lines with the settings that each adds to the run's augmentation and to the lines before it."""
    merged = augment
    completed = []
    for line in lines:
        settings = widen_settings(merged, augment_settings(line.family, line.strength))
        merged = merged.replace(**{key: _as_field(value) for key, value in settings.items()})
        completed.append(replace(line, value=settings[line.key], settings=settings))
    return completed


def _drop(point: ProbePoint) -> IntervalDict:
    return IntervalDict(value=point.drop, low=point.drop_low, high=point.drop_high)


def _as_field(value: Any) -> Any:
    """Return a value of YAML as a field of the config has it: lists are tuples."""
    return tuple(value) if isinstance(value, list) else value
