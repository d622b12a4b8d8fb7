"""Reads the stored bytes of the images that a page shows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from choral.core.errors import DataError
from choral.data.shards.index import Dataset, Index
from choral.data.shards.store import LocalStore
from choral.inference.evaluation_plan import HELD_OUT

SampleId = tuple[str, str]
"""A split and a key in it."""
ImageReader = Callable[[str, str], bytes]
"""Returns the stored bytes of an image by split and key; safe to call from several threads. DataError: no such image."""
ImageFinder = Callable[[Sequence[SampleId]], ImageReader]
"""Looks up the positions of images, and returns the function that reads them."""


def make_image_finder(dataset: Dataset, held_out: str = "") -> ImageFinder:
    """Return the function that finds images of a packed data set.

    Args:
        dataset: a split may also be named as its ledger is, SPLIT@NAME.
        held_out: the split that held-out predictions cover.
    """

    def find(samples: Sequence[SampleId]) -> ImageReader:
        records = {}
        for split in dict.fromkeys(split for split, _ in samples):
            packed_split = held_out if split == HELD_OUT else split.partition("@")[0]
            if packed_split not in dataset.splits:
                continue
            keys = [key for key_split, key in samples if key_split == split]
            index = Index.open(dataset, packed_split)
            rows = pc.index_in(pa.array(keys, pa.string()), value_set=index.table["key"].combine_chunks())
            for key, row in zip(keys, rows.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64), strict=True):
                if row >= 0:
                    records[split, key] = index.row(int(row))
        store = LocalStore(dataset)

        def read(split: str, key: str) -> bytes:
            record = records.get((split, key))
            if record is None:
                raise DataError(f"{dataset.folder}: split {split} has no sample '{key}'")
            return store.read(record.shard, record.offset, record.length)

        return read

    return find
