"""Finds exact and near-duplicate images. Duplicates across splits leak; duplicates with different labels conflict."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from choral.analysis.image_survey import SURVEY_DIR, Progress, Survey, order_splits
from choral.analysis.label_text import format_labels
from choral.analysis.near_duplicates import MAX_DIFFERENCE, Pair, find_near_pairs
from choral.core.errors import ChoralError
from choral.runs.run_dir import read_json, write_json

_log = logging.getLogger(__name__)

FORMAT = "choral-near-duplicates-1"  # change it when other pairs are found
MAX_GROUPS = 2000  # listed
_MIN_PARALLEL = 512  # images: fewer are compared in this process
_MEASURE = (
    "one minus the correlation of fine detail after alignment, with what similar images have in common removed: 0 to "
    f"{MAX_DIFFERENCE:g}"
)
_NOTE = (
    "All images of all splits were compared by file bytes, by pixels, and for near-duplicates: the same picture saved again, "
    "resized, cropped by about 5 %, relit, mirrored or rotated by quarter turns. Two photographs of the same object may also "
    "be listed."
)


@dataclass(frozen=True)
class SampleRef:
    """A sample of the data set, with its label as text."""

    split: str
    key: str
    label: str


@dataclass(frozen=True)
class DuplicateGroup:
    """Samples that show the same image.

    Attributes:
        samples: two or more, train before val before test.
        kind: "bytes": the same file. "pixels": different files, the same pixels. "near": the same picture, saved again,
            resized, cropped or relit.
        difference: the largest between two linked samples, see `Duplicates.measure`; 0 for the first two kinds.
        turned: whether some are mirrored or rotated by quarter turns.
        across: whether they lie in more than one split (leakage).
        conflict: whether their labels differ.
    """

    samples: tuple[SampleRef, ...]
    kind: str
    difference: float
    turned: bool
    across: bool
    conflict: bool


@dataclass(frozen=True)
class Duplicates:
    """Groups of duplicates: label conflicts first, then across splits, then within.

    Attributes:
        groups: those listed.
        found: number of groups.
        across, conflicts: of these.
        leaked: samples of each split but the training split that have a duplicate there.
        compared: images of all splits that were compared with each other.
        measure: what `DuplicateGroup.difference` is.
        note: how they were found, in a few sentences.
    """

    groups: tuple[DuplicateGroup, ...]
    found: int
    across: int
    conflicts: int
    leaked: dict[str, int]
    compared: int
    measure: str
    note: str


def find_duplicates(
    surveys: Mapping[str, Survey], *, train: str, processes: int | None = None, progress: Progress | None = None
) -> Duplicates:
    """Return the duplicates of a data set.

    Near-duplicates take minutes for 50,000 images; the result is stored beside the shards and reused.

    Args:
        surveys: of all splits.
        train: the training split.
        processes: worker processes of the search; None: one a core, a single one for small data.
        progress: called with the number of candidate pairs compared, and their total.

    Raises:
        DataError: a shard cannot be read.
    """
    named = list(order_splits(dict(surveys)))
    splits, ordered = [split for split, _ in named], [survey for _, survey in named]
    starts = np.cumsum([0, *(len(survey) for survey in ordered)])
    sets = _DisjointSets(int(starts[-1]))
    exact = _find_exact(ordered)
    for groups in exact.values():
        for group in groups:
            sets.join_all(group)
    pairs = _find_near(ordered, exact["pixels"], processes, progress)
    for pair in pairs:
        sets.join(pair.one, pair.other)
    samples = [
        SampleRef(split, key, label)
        for split, survey in named
        for rows in [np.arange(len(survey))]
        for key, label in zip(survey.index.keys(rows), format_labels(survey.index, rows), strict=True)
    ]
    file_hashes = np.concatenate([survey.file_hash for survey in ordered])
    pairs_of_root: dict[int, list[Pair]] = {}
    for pair in pairs:
        pairs_of_root.setdefault(sets.root(pair.one), []).append(pair)
    found = []
    for positions in sets.groups():
        linked = pairs_of_root.get(sets.root(positions[0]), [])
        same_file = len(set(file_hashes[positions].tolist())) == 1
        kind = "near" if linked else "bytes" if same_file else "pixels"
        found.append(_build_group(tuple(samples[position] for position in positions), linked, kind))
    found.sort(key=lambda group: (not group.conflict, not group.across, group.difference, group.samples[0].key))
    return Duplicates(
        groups=tuple(found[:MAX_GROUPS]),
        found=len(found),
        across=sum(group.across for group in found),
        conflicts=sum(group.conflict for group in found),
        leaked=_count_leaked(found, splits, train),
        compared=sum(not reason for survey in ordered for reason in survey.reasons),
        measure=_MEASURE,
        note=_NOTE,
    )


class _DisjointSets:
    """Union-find over positions 0 to `count` - 1."""

    def __init__(self, count: int) -> None:
        self._parent = list(range(count))
        self._joined: set[int] = set()

    def root(self, position: int) -> int:
        """Return the smallest position of the set that holds a position."""
        while self._parent[position] != position:
            self._parent[position] = self._parent[self._parent[position]]
            position = self._parent[position]
        return position

    def join(self, one: int, other: int) -> None:
        """Merge the sets of two positions."""
        first, last = sorted((self.root(one), self.root(other)))
        self._parent[last] = first
        self._joined |= {one, other}

    def join_all(self, positions: Sequence[int]) -> None:
        """Merge the sets of all these positions."""
        for position in positions[1:]:
            self.join(positions[0], position)

    def groups(self) -> list[list[int]]:
        """Return the sets of two and more, positions ascending."""
        found: dict[int, list[int]] = {}
        for position in sorted(self._joined):
            found.setdefault(self.root(position), []).append(position)
        return list(found.values())


def _find_exact(surveys: Sequence[Survey]) -> dict[str, list[list[int]]]:
    """Return the groups of positions with the same bytes, and with the same pixels."""
    readable = np.concatenate([np.array([not reason for reason in survey.reasons], np.bool_) for survey in surveys])
    hashes = {
        "bytes": np.concatenate([survey.file_hash for survey in surveys]),
        "pixels": np.concatenate([survey.pixel_hash for survey in surveys]),
    }
    groups: dict[str, list[list[int]]] = {}
    for kind, values in hashes.items():
        positions = np.arange(len(values)) if kind == "bytes" else np.flatnonzero(readable)
        _, group, counts = np.unique(values[positions], return_inverse=True, return_counts=True)
        order = np.argsort(group, kind="stable")
        parts = np.split(positions[order], np.cumsum(counts)[:-1])
        groups[kind] = [part.tolist() for part in parts if len(part) > 1]
    return groups


def _find_near(
    surveys: Sequence[Survey], same_pixels: Sequence[Sequence[int]], processes: int | None, progress: Progress | None
) -> list[Pair]:
    """Return the near-duplicate pairs by position, read from the stored result where there is one.

    Of images with the same pixels only the first is compared.
    """
    dataset = surveys[0].index.dataset
    path = dataset.folder / SURVEY_DIR / f"near-duplicates-{dataset.fingerprint[:16]}.json"
    stored = _read_pairs(path, dataset.fingerprint)
    if stored is not None:
        return stored
    selected = _select_searched(surveys, same_pixels)
    positions = np.concatenate(selected) if selected else np.empty(0, np.int64)
    starts = np.cumsum([0, *(len(survey) for survey in surveys)])
    rows = [part - start for part, start in zip(selected, starts, strict=False)]
    workers = processes or (len(os.sched_getaffinity(0)) if len(positions) >= _MIN_PARALLEL else 1)
    pairs = [
        Pair(int(positions[pair.one]), int(positions[pair.other]), pair.difference, pair.turned)
        for pair in find_near_pairs(surveys, rows, workers, progress)
    ]
    _write_pairs(path, dataset.fingerprint, pairs)
    return pairs


def _select_searched(surveys: Sequence[Survey], same_pixels: Sequence[Sequence[int]]) -> list[NDArray[np.int64]]:
    """Return the positions of each split to search: readable, not flat, and not a copy of an earlier image."""
    copies = {position for group in same_pixels for position in group[1:]}
    selected, start = [], 0
    for survey in surveys:
        usable = np.array([not reason for reason in survey.reasons], np.bool_) & ~survey.constant
        usable &= np.asarray(survey.thumbnails[:, 0], np.float32).any(axis=1)
        positions = start + np.flatnonzero(usable)
        selected.append(np.array([one for one in positions.tolist() if one not in copies], np.int64))
        start += len(survey)
    return selected


def _read_pairs(path: Path, dataset: str) -> list[Pair] | None:
    """Return the stored pairs; None where there are none, or of other data or format, or the file is damaged."""
    try:
        content = read_json(path) or {}
        if content.get("format") != FORMAT or content.get("dataset") != dataset:
            return None
        return [
            Pair(int(one), int(other), float(difference), bool(turned))
            for one, other, difference, turned in content["pairs"]
        ]
    except (OSError, KeyError, TypeError, ValueError) as error:
        _log.warning("%s is damaged (%s); near-duplicates are searched again", path, error)
        return None


def _write_pairs(path: Path, dataset: str, pairs: Sequence[Pair]) -> None:
    rows = [[pair.one, pair.other, pair.difference, pair.turned] for pair in pairs]
    try:
        write_json(path, {"format": FORMAT, "dataset": dataset, "pairs": rows})
    except ChoralError as error:
        _log.warning("near-duplicates cannot be stored (%s); each analysis will search again", error)


def _build_group(samples: tuple[SampleRef, ...], pairs: Sequence[Pair], kind: str) -> DuplicateGroup:
    return DuplicateGroup(
        samples=samples,
        kind=kind,
        difference=max((pair.difference for pair in pairs), default=0.0),
        turned=any(pair.turned for pair in pairs),
        across=len({sample.split for sample in samples}) > 1,
        conflict=len({sample.label for sample in samples}) > 1,
    )


def _count_leaked(groups: Sequence[DuplicateGroup], splits: Sequence[str], train: str) -> dict[str, int]:
    """Return how many samples of each split but the training split have a duplicate there."""
    counts = {split: 0 for split in splits if split != train}
    for group in groups:
        group_splits = [sample.split for sample in group.samples]
        if train in group_splits:
            for split in group_splits:
                if split != train:
                    counts[split] += 1
    return counts
