"""Strata and groups of samples. Splits and folds keep the proportions of strata and keep each group together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from choral.data.shards.index import LABEL_IDS, count_classes

_MIN_STRATUM = 10  # samples from which a combination of labels is a separate stratum
_BINS = 10  # quantile bins of the first target; also the samples that a bin needs


def compute_strata(samples: pa.Table, task: str, classes: Sequence[str]) -> NDArray[np.int64]:
    """Return the (n,) int64 stratum of each sample.

    multiclass: the class. multilabel: the combination of labels; rare combinations are pooled by their rarest label.
    regression: the decile of the first target, with fewer bins below 100 samples.

    Args:
        samples: rows of an index, or rows that are to be packed.
        task, classes: of the data set.
    """
    if task == "multiclass":
        labels: NDArray[np.int64] = samples["label"].to_numpy()
        return labels
    if task == "multilabel":
        return _label_strata(samples, len(classes))
    values = samples[classes[0]].to_numpy()
    bins = max(1, min(_BINS, len(values) // _BINS))
    edges = np.unique(np.quantile(values, np.arange(1, bins) / bins))
    strata: NDArray[np.int64] = np.searchsorted(edges, values, side="right")
    return strata


def encode_groups(samples: pa.Table) -> tuple[list[str], NDArray[np.int64]] | None:
    """Return the group names and the (n,) int64 group number of each sample; None if no sample has a group.

    A sample without a group forms a group by itself. Names are "1" + group, or "0" + key for such samples.
    """
    if "group" not in samples.column_names or samples["group"].null_count == samples.num_rows:
        return None
    keys, groups = samples["key"].to_pylist(), samples["group"].to_pylist()
    names = [f"0{key}" if group is None else f"1{group}" for key, group in zip(keys, groups, strict=True)]
    encoded = pa.array(names, pa.string()).dictionary_encode()
    return encoded.dictionary.to_pylist(), encoded.indices.to_numpy().astype(np.int64)


def _label_strata(samples: pa.Table, labels: int) -> NDArray[np.int64]:
    sets: list[list[int]] = samples[LABEL_IDS].to_pylist()
    combinations = Counter(map(tuple, sets))
    counts = count_classes(samples, "multilabel", labels)
    names = [
        f"{ids}"
        if combinations[tuple(ids)] >= _MIN_STRATUM or not ids
        else f"rare {min(ids, key=lambda i: (counts[i], i))}"
        for ids in sets
    ]
    strata: NDArray[np.int64] = np.unique(np.array(names), return_inverse=True)[1]
    return strata
