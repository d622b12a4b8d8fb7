"""The sentences of advice: why a family is advised, why another is not, and the note on top."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from choral.analysis.advice import AdviceLine
from choral.analysis.augment_coverage import find_covering_setting
from choral.analysis.probe_curves import ProbeCurve, ProbePoint
from choral.analysis.probe_evidence import (
    UNDONE_BY,
    ProbeEvidence,
    compute_min_resemblance,
    compute_other_class_share,
    find_shown_strength,
    is_significant,
)
from choral.analysis.undo_probes import UndoResult
from choral.ensembles.score_rows import SEED, IntervalDict
from choral.metrics.intervals import bootstrap

_MIN_OTHER_CLASS_GAIN = 0.05  # more images next to another class than unchanged: below that it may be chance


def undo_reason(curve: ProbeCurve, point: ProbePoint, undo: UndoResult, gain: IntervalDict, plausibility: float) -> str:
    """Return why a family is advised that the data contain: its drop, and what undoing it gains."""
    corrected, broken = int((undo.difference > 0).sum()), int((undo.difference < 0).sum())
    return (
        f"{curve.family}: perturbing validation images ({curve.text}, x = {_format_strength(point.strength, curve.unit)}) "
        f"costs {_format_drop(point)} (p {_format_p(point.p_adjusted)}). Undoing it where the network is then more confident "
        f"({undo.family} up to {undo.strength:g}) corrects {corrected} predictions and breaks {broken}: "
        f"{_format_gain(gain['value'], gain['low'], gain['high'])} (p {_format_p(undo.p_adjusted)}), "
        f"{100 * plausibility:.0f} % of the errors. So validation images contain this variation, and training did not cover "
        "it."
    )


def resemblance_reason(curve: ProbeCurve, point: ProbePoint, resemblance: float) -> str:
    """Return why a family is advised whose perturbed images resemble their class."""
    return (
        f"{curve.family}: perturbing validation images ({curve.text}, x = {_format_strength(point.strength, curve.unit)}) "
        f"costs {_format_drop(point)} (p {_format_p(point.p_adjusted)}), though they still resemble their class: for "
        f"{50 * resemblance:.0f} % the nearest neighbour is of the other kind (50 %: indistinguishable). So the network "
        "relies on something that does not seem to define the classes."
    )


def rejection_reason(curve: ProbeCurve, evidence: ProbeEvidence) -> str:
    """Return the first condition of advice that a family does not meet."""
    worst = curve.worst
    costs = f"costs {100 * worst.drop:.1f} points at {_format_strength(worst.strength, curve.unit)}"
    selected = evidence.selected_undo(curve.family)
    if selected is not None:
        strength = find_shown_strength(curve.family, selected.strength)
        if setting := find_covering_setting(evidence.augment, curve.family, strength):
            return f"validation images contain it, but {setting} covers it already"
        at = _format_strength(strength, curve.unit)
        return f"no significant drop up to {at}, as far as validation images contain it"
    if not is_significant(worst):
        return f"no significant drop: at most {_format_drop(worst)}"
    if not curve.key:
        return f"{costs}, but no key of augment applies it in training"
    inverse, undo = UNDONE_BY.get(curve.family), evidence.undo_result(curve.family)
    if inverse is None or undo is None:
        why = "nothing undoes it" if inverse is None else f"{inverse}, which undoes it, was not probed"
        unknown = "so whether validation images contain it was not measured"
        return f"{costs}, but {why}, {unknown}{_resemblance_text(curve, evidence)}"
    gain = bootstrap(undo.difference, seed=SEED)
    gain_text = f"{_format_gain(gain.value, gain.low, gain.high)}, p {_format_p(undo.p_adjusted)}"
    if undo.helps:
        others = ", ".join(one.family for one in evidence.selected)
        return f"{costs}, but {others} corrects the same errors: undoing it adds nothing significant"
    return (
        f"{costs}, but undoing it corrects nothing significant ({gain_text}): validation images do not contain it"
        f"{_resemblance_text(curve, evidence)}{_other_class_text(curve, evidence)}"
    )


def advice_note(lines: Sequence[AdviceLine], evidence: ProbeEvidence) -> str:
    """Return the summary of a piece of advice in one or two sentences."""
    tested = (
        f"{len(evidence.curves.curves)} families were probed on {evidence.curves.n} samples, "
        f"{len(evidence.individual)} of them undone"
    )
    if not lines:
        why = (
            "no family costs accuracy significantly and is either contained in the validation images or resembles them"
        )
        return f"Nothing is advised: {why}. {tested}."
    names = ", ".join(line.family for line in lines)
    return f"Advised: {names}, ordered by drop times plausibility. {tested}; p values are after Holm's correction."


def _resemblance_text(curve: ProbeCurve, evidence: ProbeEvidence) -> str:
    if not evidence.has_features:
        return ""
    resemblance = compute_min_resemblance(evidence.probed, curve.family, curve.worst.strength)
    return (
        f"; for {50 * resemblance:.0f} % of the perturbed images the nearest neighbour is of the other kind "
        "(50 %: indistinguishable from their class)"
    )


def _other_class_text(curve: ProbeCurve, evidence: ProbeEvidence) -> str:
    """Return how many perturbed images are nearest to another class, where that is more than chance."""
    if not evidence.has_features:
        return ""
    probed = evidence.probed
    probes = [probe for probe in probed.of(curve.family) if probe.strength == curve.worst.strength]
    before = compute_other_class_share(probed, None)
    after = float(np.mean([compute_other_class_share(probed, probe) for probe in probes]))
    if after < before + _MIN_OTHER_CLASS_GAIN:
        return ""
    return f", {100 * after:.0f} % are nearest to an image of another class ({100 * before:.0f} % unchanged)"


def _format_drop(point: ProbePoint) -> str:
    return f"{100 * point.drop:.1f} points [{100 * point.drop_low:.1f}, {100 * point.drop_high:.1f}]"


def _format_gain(value: float, low: float, high: float) -> str:
    return f"{100 * value:+.1f} points [{100 * low:+.1f}, {100 * high:+.1f}]"


def _format_p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"= {value:.3f}"


def _format_strength(strength: float, unit: str) -> str:
    return f"{strength:g} {unit}".strip()
