"""Exact and near duplicates: what is learned from one copy is known about the other; two labels cannot both hold."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from choral.analysis.image_survey import FOLDER, Progress, Survey, in_order
from choral.analysis.label_text import label_texts
from choral.analysis.near_duplicates import FARTHEST, Pair, near_pairs
from choral.analysis.results import Duplicates, Place, Twins
from choral.core.errors import ChoralError
from choral.runs.run_dir import read_json, write_json

_log = logging.getLogger(__name__)

FORMAT = "choral-twins-3"  # another number when other pairs are found
LISTED = 2000
_WORTH_A_PROCESS = 512  # images
_MEASURE = f"one minus the correlation of fine detail after alignment, less what look-alikes explain: 0 to {FARTHEST:g}"
_NOTE = (
    "All images of all splits were compared with each other, by the bytes of the files, by their pixels, and for the same "
    "picture saved again, resized, cut by about 5 %, lit otherwise, mirrored or turned by quarters. Near duplicates may also "
    "be two photographs of one thing."
)


def duplicates_of(
    surveys: Mapping[str, Survey], *, train: str, processes: int | None = None, progress: Progress | None = None
) -> Duplicates:
    """Return the images of a data set that show the same, label conflicts first, then across splits.

    Near duplicates take minutes for 50,000 images; they are kept beside the shards, and found once.

    Args:
        surveys: of all splits.
        train: the training split.
        processes: that search; None: one a core, one for small data.
        progress: of candidates compared, and all.

    Raises:
        DataError: a shard cannot be read.
    """
    named = list(in_order(dict(surveys)))
    names, found = [name for name, _ in named], [own for _, own in named]
    starts = np.cumsum([0, *(len(own) for own in found)])
    exact = _exact(found)
    groups = _Groups(int(starts[-1]))
    for kind in exact.values():
        for places in kind:
            groups.join_all(places)
    pairs = _near(found, exact["pixels"], processes, progress)
    for pair in pairs:
        groups.join(pair.one, pair.other)
    texts = [label_texts(own.index, np.arange(len(own))) for own in found]
    keys = [own.index.keys(np.arange(len(own))) for own in found]
    by_root: dict[int, list[Pair]] = {}
    for pair in pairs:
        by_root.setdefault(groups.root(pair.one), []).append(pair)
    twins = []
    for places in groups.several():
        where = [(int(np.searchsorted(starts, place, side="right")) - 1, place) for place in places]
        listed = tuple(
            Place(names[split], keys[split][place - starts[split]], texts[split][place - starts[split]])
            for split, place in where
        )
        own = by_root.get(groups.root(places[0]), [])
        twins.append(_twins(listed, own, _kind(places, found, starts, own)))
    twins.sort(key=lambda own: (not own.conflict, not own.across, own.difference, own.places[0].key))
    return Duplicates(
        twins=tuple(twins[:LISTED]),
        found=len(twins),
        across=sum(own.across for own in twins),
        conflicts=sum(own.conflict for own in twins),
        leaked=_leaked(twins, names, train),
        compared=sum(not reason for own in found for reason in own.reasons),
        measure=_MEASURE,
        note=_NOTE,
    )


class _Groups:
    """Places that belong together, joined two by two."""

    def __init__(self, count: int) -> None:
        self._parent = list(range(count))
        self._joined: set[int] = set()

    def root(self, place: int) -> int:
        """Return the first place of the group that a place is in."""
        while self._parent[place] != place:
            self._parent[place] = self._parent[self._parent[place]]
            place = self._parent[place]
        return place

    def join(self, one: int, other: int) -> None:
        """Make one group of two."""
        first, last = sorted((self.root(one), self.root(other)))
        self._parent[last] = first
        self._joined |= {one, other}

    def join_all(self, places: Sequence[int]) -> None:
        """Make one group of all that these are in."""
        for place in places[1:]:
            self.join(places[0], place)

    def several(self) -> list[list[int]]:
        """Return the groups of two and more, places ascending."""
        found: dict[int, list[int]] = {}
        for place in sorted(self._joined):
            found.setdefault(self.root(place), []).append(place)
        return list(found.values())


def _exact(found: Sequence[Survey]) -> dict[str, list[list[int]]]:
    """Return groups of places with the same bytes, and with the same pixels."""
    readable = np.concatenate([np.array([not reason for reason in own.reasons], np.bool_) for own in found])
    hashes = {
        "bytes": np.concatenate([own.file_hash for own in found]),
        "pixels": np.concatenate([own.pixel_hash for own in found]),
    }
    groups: dict[str, list[list[int]]] = {}
    for kind, values in hashes.items():
        places = np.arange(len(values)) if kind == "bytes" else np.flatnonzero(readable)
        _, of_place, counts = np.unique(values[places], return_inverse=True, return_counts=True)
        order = np.argsort(of_place, kind="stable")
        parts = np.split(places[order], np.cumsum(counts)[:-1])
        groups[kind] = [part.tolist() for part in parts if len(part) > 1]
    return groups


def _near(
    found: Sequence[Survey], same_pixels: Sequence[Sequence[int]], processes: int | None, progress: Progress | None
) -> list[Pair]:
    """Return pairs of places, of images with the same pixels the first one alone; from where they are kept, if they are."""
    dataset = found[0].index.dataset
    path = dataset.folder / FOLDER / f"twins-{dataset.fingerprint[:16]}.json"
    kept = _kept(path, dataset.fingerprint)
    if kept is not None:
        return kept
    chosen_of = _chosen(found, same_pixels)
    places = np.concatenate(chosen_of) if chosen_of else np.empty(0, np.int64)
    starts = np.cumsum([0, *(len(own) for own in found)])
    rows = [own - start for own, start in zip(chosen_of, starts, strict=False)]
    workers = processes or (len(os.sched_getaffinity(0)) if len(places) >= _WORTH_A_PROCESS else 1)
    pairs = [
        Pair(int(places[own.one]), int(places[own.other]), own.difference, own.turned)
        for own in near_pairs(found, rows, workers, progress)
    ]
    _keep(path, dataset.fingerprint, pairs)
    return pairs


def _chosen(found: Sequence[Survey], same_pixels: Sequence[Sequence[int]]) -> list[NDArray[np.int64]]:
    """Return the places of each split that are searched: readable, not flat, and no copy of an earlier one."""
    copies = {place for group in same_pixels for place in group[1:]}
    chosen, start = [], 0
    for own in found:
        seen = np.array([not reason for reason in own.reasons], np.bool_) & ~own.constant
        seen &= np.asarray(own.thumbnails[:, 0], np.float32).any(axis=1)
        places = start + np.flatnonzero(seen)
        chosen.append(np.array([place for place in places.tolist() if place not in copies], np.int64))
        start += len(own)
    return chosen


def _kept(path: Path, dataset: str) -> list[Pair] | None:
    """Return what was found before; None where there is nothing, or something else, or the file is damaged."""
    try:
        content = read_json(path) or {}
        if content.get("format") != FORMAT or content.get("dataset") != dataset:
            return None
        return [Pair(int(one), int(other), float(far), bool(turned)) for one, other, far, turned in content["pairs"]]
    except (OSError, KeyError, TypeError, ValueError) as error:
        _log.warning("%s is made again: it is damaged (%s)", path, error)
        return None


def _keep(path: Path, dataset: str, pairs: Sequence[Pair]) -> None:
    listed = [[own.one, own.other, own.difference, own.turned] for own in pairs]
    try:
        write_json(path, {"format": FORMAT, "dataset": dataset, "pairs": listed})
    except ChoralError as error:
        _log.warning("near duplicates are not kept (%s): each analysis searches anew", error)


def _kind(places: Sequence[int], found: Sequence[Survey], starts: NDArray[np.int64], pairs: Sequence[Pair]) -> str:
    if pairs:
        return "near"
    files = set()
    for place in places:
        split = int(np.searchsorted(starts, place, side="right")) - 1
        files.add(bytes(found[split].file_hash[place - starts[split]]))
    return "bytes" if len(files) == 1 else "pixels"


def _twins(places: tuple[Place, ...], pairs: Sequence[Pair], kind: str) -> Twins:
    return Twins(
        places=places,
        kind=kind,
        difference=max((own.difference for own in pairs), default=0.0),
        turned=any(own.turned for own in pairs),
        across=len({own.split for own in places}) > 1,
        conflict=len({own.label for own in places}) > 1,
    )


def _leaked(twins: Sequence[Twins], names: Sequence[str], train: str) -> dict[str, int]:
    """Return how many samples of each split but train have a twin in train."""
    counts = {name: 0 for name in names if name != train}
    for own in twins:
        splits = [place.split for place in own.places]
        if train in splits:
            for split in splits:
                if split != train:
                    counts[split] += 1
    return counts
