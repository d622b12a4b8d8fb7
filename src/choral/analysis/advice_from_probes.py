"""From probes to advice: which family of changes a run is sensitive to, and validation images show.

A family is advised if three things hold, each measured on validation images:

1. The run is sensitive to it: changed so, significantly fewer answers are right (`choral.analysis.probe_curves`). A family
   that undoes itself may cost nothing on average, as a flip does where half of the images are flipped: then 2. shows it.
2. It is plausible: undoing it mends answers, significantly (`choral.analysis.undo_probes`); the share of all errors that it mends
   is how plausible it is. Changes that alter labels, or that validation images do not show, mend nothing.
3. The run's augmentation does not cover it at that strength.

Both p values are after Holm's correction. How far images had to be changed back is the strength; families are ordered by the
drop at that strength times the plausibility.

Where nothing can be mended so, a network may still lean on what its data do not mean, such as which way up an image is. Then
a family is advised that costs significantly at a strength at which changed images cannot well be told from others of their
class (`choral.analysis.resemblance`), for such images might as well have come; if there are errors enough for a gain to be seen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from choral.analysis.advice import Advice, Line, Rejected
from choral.analysis.augment_coverage import covering, widened
from choral.analysis.probe_curves import Curve, Curves, Point, Probed
from choral.analysis.probes.families import BY_NAME, Probe, augment_of
from choral.analysis.resemblance import resemblance
from choral.analysis.undo_probes import LEVEL, Choices, Undone, rightness_of, sureness_of, undo
from choral.config import AugmentConfig
from choral.ensembles.score_rows import SEED, Numbers, numbers
from choral.metrics.estimate import p_of
from choral.metrics.intervals import Interval, bootstrap
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
"""What a family of changes is undone by, itself (another angle, the other side) or another one. Nothing brings back what is
occluded or compressed away."""
ALIKE = 0.5
"""From which resemblance on changed images are plausible: at least half as many as by chance lie next to unchanged ones."""
LEAST_ERRORS = 6  # mended without a loss they are significant, fewer are not: 2 x 0.5^5 > 0.05
_FACTORS_BELOW = ("smaller", "darker", "low_contrast", "pale")  # 1 - x, undone by 1 + x
_FACTORS_ABOVE = ("larger", "lighter", "high_contrast", "vivid")  # 1 + x, undone by 1 - x


def make_advice(probed: Probed, curves: Curves, augment: AugmentConfig) -> Advice:
    """Return what the probes of a run advise.

    Args:
        probed, curves: of the same samples.
        augment: that the run was trained with.
    """
    task = probed.ledger.meta.task
    if task == "regression":
        note = "Numbers do not say how sure they are, so what validation images show cannot be measured: nothing is advised."
        return _advice(probed, curves, (), (), 0, note)
    taken, alone = _undone(probed, curves)
    errors = max(1.0 - float(_right(probed, None).mean()), 1e-9)
    curves = with_both_directions(curves)
    by_family = {one.family: one for one in taken}
    lines: list[Line] = []
    for curve in curves.curves:
        found = by_family.get(UNDONE_BY.get(curve.family, ""))
        lines += [line] if found is not None and (line := _line(curve, found, errors, augment)) else []
    if not taken:
        lines = _alike(probed, curves, alone, augment)
    advised = {line.family for line in lines}
    rejected = [
        Rejected(
            curve.family, _why_not(curve, by_family.get(UNDONE_BY.get(curve.family, "")), alone, taken, probed, augment)
        )
        for curve in curves.curves
        if curve.family not in advised
    ]
    merged = augment
    lines.sort(key=lambda line: -line.score)
    for number, line in enumerate(lines):
        settings = widened(merged, augment_of(line.family, line.strength))
        merged = replace(merged, **{key: _typed(value) for key, value in settings.items()})
        lines[number] = replace(line, value=settings[line.key], settings=settings)
    return _advice(probed, curves, tuple(lines), tuple(rejected), len(alone), _note(lines, curves, len(alone)))


def _advice(
    probed: Probed,
    curves: Curves,
    lines: tuple[Line, ...],
    rejected: tuple[Rejected, ...],
    comparisons: int,
    note: str,
) -> Advice:
    return Advice(
        run=curves.run,
        split=curves.split,
        predictor=curves.predictor,
        metric=curves.metric,
        n=curves.n,
        lines=lines,
        rejected=rejected,
        comparisons=comparisons,
        note=note,
        dataset=probed.ledger.meta.dataset,
        evaluation=curves.evaluation,
    )


def _undone(probed: Probed, curves: Curves) -> tuple[list[Undone], dict[str, Undone]]:
    """Return what is mended by the families that undo one which was probed, as `undo` does."""
    names = dict.fromkeys(UNDONE_BY[curve.family] for curve in curves.curves if curve.family in UNDONE_BY)
    offered = {name: _choices(probed, probed.of(name)) for name in names if probed.of(name)}
    return undo(_sure(probed, None), _right(probed, None), offered, probed.ledger.keys)


def _choices(probed: Probed, probes: tuple[Probe, ...]) -> Choices:
    return Choices(
        np.array([probe.strength for probe in probes]),
        np.stack([_sure(probed, probe) for probe in probes]),
        np.stack([_right(probed, probe) for probe in probes]),
    )


def _sure(probed: Probed, probe: Probe | None) -> NDArray[np.float64]:
    return sureness_of(probed.ledger.meta.task, probed.predictions(probe))


def _right(probed: Probed, probe: Probe | None) -> NDArray[np.float64]:
    return rightness_of(probed.ledger.meta.task, probed.ledger.labels, probed.predictions(probe))


def strength_shown(family: str, undone: float) -> float:
    """Return up to which strength of a family images show it, if undoing it took changes up to another strength.

    It is one that was probed, or the largest: rounded up, for what images show is not known more finely.

    Args:
        family: that is shown.
        undone: a strength of the family that undoes it.
    """
    strengths, others = BY_NAME[family].strengths, BY_NAME[UNDONE_BY[family]].strengths
    if family in _FACTORS_BELOW:
        shown = 1 - 1 / (1 + undone)
    elif family in _FACTORS_ABOVE:
        shown = undone / (1 - undone) if undone < 1 else np.inf
    elif UNDONE_BY[family] == family:
        shown = undone
    else:  # sharpening and blur: as far along their own strengths
        share = (1 + max(number for number, value in enumerate(others) if value <= undone)) / len(others)
        shown = strengths[int(np.ceil(share * len(strengths))) - 1]
    return min((value for value in strengths if value >= shown - 1e-9), default=strengths[-1])


def with_both_directions(curves: Curves) -> Curves:
    """Return curves whose p values of families with two directions are those of their intervals alone.

    The exact test of signs is about how many samples change sides. Where half of the images are turned, turning all of them
    by either sign mends some and spoils more: as many change sides either way, and still many fewer are right.
    """

    def own(curve: Curve, point: Point) -> float:
        if not BY_NAME[curve.family].both:
            return point.p
        return p_of(Interval(point.drop, point.drop_low, point.drop_high))

    adjusted = iter(holm([own(curve, point) for curve in curves.curves for point in curve.points]))
    changed = [
        replace(curve, points=tuple(replace(point, p_adjusted=next(adjusted)) for point in curve.points))
        for curve in curves.curves
    ]
    return replace(curves, curves=tuple(changed))


def _line(curve: Curve, undone: Undone, errors: float, augment: AugmentConfig) -> Line | None:
    """Return a line, still without settings; None where the run is not sensitive, or covered."""
    strength = strength_shown(curve.family, undone.strength)
    point, gain = sensitive_point(curve, strength), numbers(bootstrap(undone.difference, seed=SEED))
    if point is None and UNDONE_BY[curve.family] == curve.family:
        # What half of the images show costs the other half as much as it mends these: what undoing brings is what it cost.
        low, high = gain["low"], gain["high"]
        point = Point(strength, 0, 0, 0, gain["value"], low, high, undone.p, undone.p_adjusted)
    if point is None or covering(augment, curve.family, strength):
        return None
    plausibility = min(1.0, gain["value"] / errors)
    drop = Numbers(value=point.drop, low=point.drop_low, high=point.drop_high)
    return Line(
        family=curve.family,
        key=curve.key,
        value=None,
        settings={},
        strength=strength,
        unit=curve.unit,
        drop=drop,
        p_drop=point.p_adjusted,
        evidence="undone",
        gain=gain,
        p_gain=undone.p_adjusted,
        plausibility=plausibility,
        score=point.drop * plausibility,
        reason=_reason(curve, point, undone, gain, plausibility),
    )


def _alike(probed: Probed, curves: Curves, alone: Mapping[str, Undone], augment: AugmentConfig) -> list[Line]:
    """Return lines, still without settings, of what costs though changed images look like others of their class."""
    meta = probed.ledger.meta
    errors = round(float((1 - _right(probed, None)).sum()))
    if meta.task != "multiclass" or not meta.features or errors < LEAST_ERRORS:
        return []
    lines = []
    for curve in curves.curves:
        for point in reversed(curve.points) if curve.key else ():
            if point.drop <= 0 or point.p_adjusted >= LEVEL or covering(augment, curve.family, point.strength):
                continue
            alike = alikeness(probed, curve.family, point.strength)
            if alike >= ALIKE:
                lines.append(_alike_line(curve, point, alike, alone.get(UNDONE_BY.get(curve.family, ""))))
                break
    return lines


def _alike_line(curve: Curve, point: Point, alike: float, undone: Undone | None) -> Line:
    return Line(
        family=curve.family,
        key=curve.key,
        value=None,
        settings={},
        strength=point.strength,
        unit=curve.unit,
        drop=Numbers(value=point.drop, low=point.drop_low, high=point.drop_high),
        p_drop=point.p_adjusted,
        evidence="alike",
        gain=None if undone is None else numbers(bootstrap(undone.difference, seed=SEED)),
        p_gain=None if undone is None else undone.p_adjusted,
        plausibility=alike,
        score=point.drop * alike,
        reason=(
            f"{curve.family}: validation images that are {curve.text}, x = {_at(point.strength, curve.unit)}, cost "
            f"{_cost(point)} (p {_p(point.p_adjusted)}), though they look much like others of their class: "
            f"{50 * alike:.0f} % have their nearest neighbour of the other kind, and with 50 % they could not be told apart. "
            "So the network leans on what its classes do not seem to mean."
        ),
    )


def alikeness(probed: Probed, family: str, strength: float) -> float:
    """Return how much images changed so look like unchanged ones of their class, 0 to 1; of two directions, the less so."""
    before, labels = probed.features(None), probed.ledger.labels
    probes = [probe for probe in probed.of(family) if probe.strength == strength]
    return min(resemblance(before, probed.features(probe), labels) for probe in probes)


def sensitive_point(curve: Curve, strength: float) -> Point | None:
    """Return the point up to a strength with the largest drop, if that is significant after Holm's correction."""
    points = [point for point in curve.points if point.strength <= strength + 1e-9]
    worst = max(points, key=lambda point: point.drop, default=None)
    return worst if worst is not None and worst.drop > 0 and worst.p_adjusted < LEVEL else None


def _reason(curve: Curve, point: Point, undone: Undone, gain: Numbers, plausibility: float) -> str:
    mended, lost = int((undone.difference > 0).sum()), int((undone.difference < 0).sum())
    return (
        f"{curve.family}: validation images that are {curve.text}, x = {_at(point.strength, curve.unit)}, cost "
        f"{_cost(point)} (p {_p(point.p_adjusted)}); and undone where the network is "
        f"surer then ({undone.family} up to {undone.strength:g}), {mended} more answers are right and {lost} fewer: "
        f"{_points(gain['value'], gain['low'], gain['high'])} (p {_p(undone.p_adjusted)}), {100 * plausibility:.0f} % of the "
        "errors. So validation images show it, and training did not."
    )


def _why_not(
    curve: Curve,
    taken: Undone | None,
    alone: Mapping[str, Undone],
    all_taken: list[Undone],
    probed: Probed,
    augment: AugmentConfig,
) -> str:
    """Return the first condition that does not hold."""
    worst = curve.worst
    costs = f"costs {100 * worst.drop:.1f} points at {_at(worst.strength, curve.unit)}"
    if taken is not None:
        strength = strength_shown(curve.family, taken.strength)
        if by := covering(augment, curve.family, strength):
            return f"validation images show it, but {by} covers it already"
        return f"costs nothing significant up to {_at(strength, curve.unit)}, as far as validation images show it"
    if worst.drop <= 0 or worst.p_adjusted >= LEVEL:
        return f"costs nothing significant: at most {_cost(worst)}"
    if not curve.key:
        return f"{costs}, but no key of augment shows it in training"
    undoing = UNDONE_BY.get(curve.family)
    if undoing is None or undoing not in alone:
        why = "nothing undoes it" if undoing is None else f"{undoing}, which undoes it, was not probed"
        return f"{costs}, but {why}, so whether validation images show it was not measured{_unlike(curve, probed)}"
    own = alone[undoing]
    gain = bootstrap(own.difference, seed=SEED)
    mends = f"{_points(gain.value, gain.low, gain.high)}, p {_p(own.p_adjusted)}"
    if own.mends:
        firsts = ", ".join(one.family for one in all_taken)
        return f"{costs}, but what undoing it mends is mended by {firsts}: nothing significant on top of that"
    words = f"{costs}, but undoing it mends nothing significant ({mends}): validation images do not show it"
    return words + _unlike(curve, probed) + _other_class(curve, probed)


def _unlike(curve: Curve, probed: Probed) -> str:
    """Return how many changed images can be told from others of their class, by their nearest neighbours."""
    if probed.ledger.meta.task != "multiclass" or not probed.ledger.meta.features:
        return ""
    alike = alikeness(probed, curve.family, curve.worst.strength)
    return (
        f"; changed so, {50 * alike:.0f} % have their nearest neighbour of the other kind (50 %: cannot be told apart)"
    )


def _other_class(curve: Curve, probed: Probed) -> str:
    """Return how many changed images lie next to images of another class, where that says more than chance would."""
    meta = probed.ledger.meta
    if meta.task != "multiclass" or not meta.features:
        return ""
    probes = [probe for probe in probed.of(curve.family) if probe.strength == curve.worst.strength]
    before = other_class_share(probed, None)
    after = float(np.mean([other_class_share(probed, probe) for probe in probes]))
    if after < before + 0.05:
        return ""
    return f", {100 * after:.0f} % look most like an image of another class ({100 * before:.0f} % unchanged)"


def other_class_share(probed: Probed, probe: Probe | None) -> float:
    """Return how many images, changed by a probe, are nearest to an unchanged one of another class, themselves apart.

    Nearest in the features of the network: a 6 that is turned into a 9 lies among the 9s. 1 - this is the accuracy of the
    nearest neighbour (Cover and Hart 1967).
    """
    images, changed = probed.features(None).astype(np.float64), probed.features(probe).astype(np.float64)
    distances = (images**2).sum(axis=1)[None] - 2 * changed @ images.T
    np.fill_diagonal(distances, np.inf)
    labels = probed.ledger.labels
    return float((labels[distances.argmin(axis=1)] != labels).mean())


def _note(lines: list[Line], curves: Curves, comparisons: int) -> str:
    tested = f"{len(curves.curves)} families were probed on {curves.n} samples, {comparisons} undone"
    if not lines:
        why = "no family costs significantly and is plausible for these data or, undone, mends something"
        return f"Nothing is advised: {why}. {tested}."
    names = ", ".join(line.family for line in lines)
    return f"Advised: {names}, in the order of drop times plausibility. {tested}; p values are after Holm's correction."


def _typed(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _cost(point: Point) -> str:
    return f"{100 * point.drop:.1f} points [{100 * point.drop_low:.1f}, {100 * point.drop_high:.1f}]"


def _points(value: float, low: float, high: float) -> str:
    return f"{100 * value:+.1f} points [{100 * low:+.1f}, {100 * high:+.1f}]"


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"= {value:.3f}"


def _at(strength: float, unit: str) -> str:
    return f"{strength:g} {unit}".strip()
