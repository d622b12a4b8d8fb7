"""What to look at first: the findings of an analysis that ask for something to be done, each in a sentence."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from choral.analysis.results import Analysis, Group

_TORN = 0.05  # of the errors: fewer that a member had right are nothing to look at


@dataclass(frozen=True)
class Highlight:
    """A finding.

    Attributes:
        tone: "bad" asks for something to be done, "good" for nothing, "" is worth knowing.
        section: of the page that tells more.
        text: one sentence.
    """

    tone: str
    section: str
    text: str


def highlights_of(analysis: Analysis) -> list[Highlight]:
    """Return the findings, those first that make figures wrong, then those that would make a better model."""
    return [
        *_of_duplicates(analysis),
        *_of_labels(analysis),
        *_of_images(analysis),
        *_of_errors(analysis),
        *_of_groups(analysis),
        *_of_trust(analysis),
        *_of_advice(analysis),
    ]


def _of_duplicates(analysis: Analysis) -> Iterator[Highlight]:
    found = analysis.duplicates
    leaked = {split: count for split, count in found.leaked.items() if count}
    if leaked:
        where = listed([f"{count:,} of {split}" for split, count in leaked.items()])
        yield Highlight(
            "bad",
            "twins",
            f"Leakage: {where} have a twin in the training split, which flatters figures of these splits.",
        )
    elif found.across:
        yield Highlight(
            "bad", "twins", f"{_count(found.across, 'image')} in more than one split: what is learned is known."
        )
    if found.conflicts:
        verb = "has" if found.conflicts == 1 else "have"
        text = f"{_count(found.conflicts, 'group')} of identical or near-identical images {verb} different labels."
        yield Highlight("bad", "twins", text)


def _of_labels(analysis: Analysis) -> Iterator[Highlight]:
    found = {source.split: source.found for source in analysis.label_errors.sources if source.found}
    if found:
        where = listed([f"{count:,} in {split}" for split, count in found.items()])
        yield Highlight("bad", "labels", f"Labels that are probably wrong: {where}.")


def _of_images(analysis: Analysis) -> Iterator[Highlight]:
    health = analysis.health
    bad = [(health.unreadable_found, "cannot be read"), (health.constant_found, "of one colour")]
    for count, what in bad:
        if count:
            verb = "" if what.startswith("cannot") else "is " if count == 1 else "are "
            yield Highlight("bad", "health", f"{_count(count, 'image')} {verb}{what}.")
    drifted = {
        drift.split: [
            one.name for one in health.quantities for own in one.drift if own.significant and own.split == drift.split
        ]
        for quantity in health.quantities
        for drift in quantity.drift
        if drift.significant
    }
    for split, names in drifted.items():
        yield Highlight(
            "bad", "health", f"Images of {split} are not like those of the training split: {listed(names)}."
        )


def _of_errors(analysis: Analysis) -> Iterator[Highlight]:
    samples = analysis.samples
    if analysis.task == "regression":
        return
    wrong = ~samples.right
    if not wrong.any():
        yield Highlight("good", "worst", f"All {analysis.n:,} samples are right.")
        return
    if analysis.task == "multiclass":
        pairs, counts = np.unique(
            np.stack([samples.labels[wrong], samples.predicted[wrong]]), axis=1, return_counts=True
        )
        place = int(counts.argmax())
        true, said = (analysis.classes[int(number)] for number in pairs[:, place])
        text = f"{_count(int(wrong.sum()), 'error')}, {counts[place]:,} of them {true} taken for {said}."
        yield Highlight("", "confusion", text)
    votes = samples.votes
    if votes.shape[1] > 1:
        same = votes == samples.labels[:, None]
        one = (same if analysis.task == "multiclass" else same.all(axis=2)).any(axis=1) & wrong
        count, errors = int(one.sum()), int(wrong.sum())
        if count >= _TORN * errors:
            text = (
                f"Of {_count(errors, 'error')}, {count:,} {'is' if count == 1 else 'are'} right by at least one member."
            )
            yield Highlight("", "worst", text)


def _of_groups(analysis: Analysis) -> Iterator[Highlight]:
    groups = analysis.groups
    found = [one for part in (groups.classes, *groups.slices.values()) for one in part if one.significant]
    worse = [one for one in found if _is_worse(one, groups.higher_is_better)]
    if worse:
        names = listed(
            [one.value if one.column in ("class", "label") else f"{one.column} {one.value}" for one in worse]
        )
        yield Highlight("bad", "groups", f"Significantly worse than the rest: {names}.")
    elif groups.comparisons:
        text = f"No class or slice differs significantly from the rest, of {groups.comparisons:,} compared."
        yield Highlight("good", "groups", text)


def _is_worse(group: Group, higher_is_better: bool) -> bool:
    return group.difference is not None and (group.difference["value"] < 0) == higher_is_better


def _of_trust(analysis: Analysis) -> Iterator[Highlight]:
    off = [one for one in analysis.reliability if one.right < one.low or not one.low <= one.confidence <= one.high]
    if len(off) > 1:  # of ten intervals of 95 % one may miss by chance
        too_sure = sum(one.confidence > one.right for one in off)
        how = "too high" if too_sure == len(off) else "too low" if not too_sure else "off"
        text = f"Probabilities are {how} in {len(off)} of {len(analysis.reliability)} bins: `choral calibrate` may mend that."
        yield Highlight("", "trust", text)


def _of_advice(analysis: Analysis) -> Iterator[Highlight]:
    if analysis.advice is None:
        return
    if lines := analysis.advice.lines:
        yield Highlight(
            "bad",
            "advice",
            f"Augmentation that may mend a weakness: {listed([one.family for one in lines])}; `choral improve` tries it.",
        )
    else:
        yield Highlight("good", "advice", "The probes give no reason for further augmentation.")


def _count(count: int, word: str) -> str:
    return f"{count:,} {word}" if count == 1 else f"{count:,} {word}s"


def listed(names: Sequence[str], most: int = 4) -> str:
    """Return names as a person would list them: "a", "a and b", "a, b, c, d and 4 more"."""
    if len(names) > most:
        return f"{', '.join(names[:most])} and {len(names) - most:,} more"
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
