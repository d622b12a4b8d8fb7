"""The findings of an analysis that call for action, one sentence each; the page and the terminal start with them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from choral.analysis.groups import Group
from choral.analysis.results import Analysis

_MIN_FIXABLE_SHARE = 0.05  # of the errors: below that, errors that some member gets right are not worth a line


@dataclass(frozen=True)
class Highlight:
    """A finding.

    Attributes:
        tone: "bad" calls for action, "good" does not, "" is information.
        section: of the page that has the details.
        text: one sentence.
    """

    tone: str
    section: str
    text: str


def find_highlights(analysis: Analysis) -> list[Highlight]:
    """Return the findings: first what makes the metrics wrong, then what could improve the model."""
    return [
        *_from_duplicates(analysis),
        *_from_labels(analysis),
        *_from_images(analysis),
        *_from_errors(analysis),
        *_from_groups(analysis),
        *_from_calibration(analysis),
        *_from_advice(analysis),
    ]


def _from_duplicates(analysis: Analysis) -> Iterator[Highlight]:
    duplicates = analysis.duplicates
    leaked = {split: count for split, count in duplicates.leaked.items() if count}
    if leaked:
        counts = join_names([f"{count:,} of {split}" for split, count in leaked.items()])
        verb = "has" if sum(leaked.values()) == 1 else "have"
        text = (
            f"Leakage: {counts} {verb} a near-duplicate in the training split, so metrics of these splits are too good."
        )
        yield Highlight("bad", "duplicates", text)
    elif duplicates.across:
        verb = "appears" if duplicates.across == 1 else "appear"
        yield Highlight("bad", "duplicates", f"{_plural(duplicates.across, 'image')} {verb} in more than one split.")
    if duplicates.conflicts:
        verb = "has" if duplicates.conflicts == 1 else "have"
        text = (
            f"{_plural(duplicates.conflicts, 'group')} of identical or near-identical images {verb} different labels."
        )
        yield Highlight("bad", "duplicates", text)


def _from_labels(analysis: Analysis) -> Iterator[Highlight]:
    counts = {source.split: source.found for source in analysis.label_errors.sources if source.found}
    if counts:
        text = join_names([f"{count:,} in {split}" for split, count in counts.items()])
        yield Highlight("bad", "labels", f"Probable label errors: {text}.")


def _from_images(analysis: Analysis) -> Iterator[Highlight]:
    health = analysis.health
    if health.unreadable_found:
        yield Highlight("bad", "health", f"{_plural(health.unreadable_found, 'image')} cannot be read.")
    if health.constant_found:
        verb = "has" if health.constant_found == 1 else "have"
        yield Highlight("bad", "health", f"{_plural(health.constant_found, 'image')} {verb} a single colour.")
    drifted: dict[str, list[str]] = {}
    for quantity in health.quantities:
        for drift in quantity.drift:
            if drift.significant:
                drifted.setdefault(drift.split, []).append(quantity.name)
    for split, names in drifted.items():
        text = f"Images of {split} differ from those of the training split: {join_names(names)}."
        yield Highlight("bad", "health", text)


def _from_errors(analysis: Analysis) -> Iterator[Highlight]:
    samples = analysis.samples
    if analysis.task == "regression":
        return
    wrong = ~samples.right
    errors = int(wrong.sum())
    if not errors:
        yield Highlight("good", "worst", f"All {analysis.n:,} predictions are correct.")
        return
    if analysis.task == "multiclass":
        pairs, counts = np.unique(
            np.stack([samples.labels[wrong], samples.predicted[wrong]]), axis=1, return_counts=True
        )
        most = int(counts.argmax())
        label, predicted = (analysis.classes[int(number)] for number in pairs[:, most])
        text = f"{_plural(errors, 'error')}; the most frequent: {label} predicted as {predicted} ({counts[most]:,})."
        yield Highlight("", "confusion", text)
    votes = samples.votes
    if votes.shape[1] > 1:
        correct = votes == samples.labels[:, None]
        any_correct = (correct if analysis.task == "multiclass" else correct.all(axis=2)).any(axis=1)
        count = int((any_correct & wrong).sum())
        if count >= _MIN_FIXABLE_SHARE * errors:
            text = f"At least one member is correct on {count:,} of {_plural(errors, 'error')}."
            yield Highlight("", "worst", text)


def _from_groups(analysis: Analysis) -> Iterator[Highlight]:
    groups = analysis.groups
    significant = [one for part in (groups.classes, *groups.slices.values()) for one in part if one.significant]
    worse = [one for one in significant if _is_worse(one, groups.higher_is_better)]
    if worse:
        names = join_names(
            [one.value if one.column in ("class", "label") else f"{one.column} {one.value}" for one in worse]
        )
        yield Highlight("bad", "groups", f"Significantly worse than the other samples: {names}.")
    elif groups.comparisons:
        text = f"None of {groups.comparisons:,} classes and slices is significantly worse than the other samples."
        if not significant:
            text = f"None of {groups.comparisons:,} classes and slices differs significantly from the other samples."
        yield Highlight("good", "groups", text)


def _is_worse(group: Group, higher_is_better: bool) -> bool:
    return group.difference is not None and (group.difference["value"] < 0) == higher_is_better


def _from_calibration(analysis: Analysis) -> Iterator[Highlight]:
    bins = analysis.reliability
    off = [one for one in bins if one.right < one.low or not one.low <= one.confidence <= one.high]
    if len(off) > 1:  # one of ten 95 % intervals may miss by chance
        overconfident = sum(one.confidence > one.right for one in off)
        how = "too high" if overconfident == len(off) else "too low" if not overconfident else "off"
        text = f"Probabilities are {how} in {len(off)} of {len(bins)} bins; `choral calibrate` may correct that."
        yield Highlight("", "trust", text)


def _from_advice(analysis: Analysis) -> Iterator[Highlight]:
    if analysis.advice is None:
        return
    if lines := analysis.advice.lines:
        families = join_names([one.family for one in lines])
        text = f"Augmentation that may fix a weakness: {families}; `choral improve` tests it."
        yield Highlight("bad", "advice", text)
    else:
        yield Highlight("good", "advice", "The probes give no reason for more augmentation.")


def _plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def join_names(names: Sequence[str], most: int = 4) -> str:
    """Return names as an English list: "a", "a and b", "a, b, c, d and 4 more"."""
    if len(names) > most:
        return f"{', '.join(names[:most])} and {len(names) - most:,} more"
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
