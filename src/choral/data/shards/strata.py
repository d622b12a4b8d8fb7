"""What a division of samples into splits or folds looks at: strata, which every part gets its share of, and groups, which
stay together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from choral.data.shards.index import LABEL_IDS, count_classes

_COMMON = 10  # samples that make a combination of labels a stratum of its own
_BINS = 10  # of the first target, over which the parts of a regression are spread evenly


def strata_of(samples: pa.Table, task: str, classes: Sequence[str]) -> NDArray[np.int64]:
    """Return the (n,) number of each sample's class or what comes near it.

    multilabel: its combination of labels; rare ones are pooled by the rarest of their labels. regression: the tenth in
    which its first target lies.

    Args:
        samples: rows of an index, or what will become them.
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
    tenths: NDArray[np.int64] = np.searchsorted(edges, values, side="right")
    return tenths


def groups_of(samples: pa.Table) -> tuple[list[str], NDArray[np.int64]] | None:
    """Return the groups' names and the (n,) number of each sample's group; None: nothing is grouped.

    A sample without a group is one by itself. Names say of which kind they are: "1" and the group, "0" and the key.
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
        f"{ids}" if combinations[tuple(ids)] >= _COMMON or not ids else f"rare {min(ids, key=lambda i: (counts[i], i))}"
        for ids in sets
    ]
    numbers: NDArray[np.int64] = np.unique(np.array(names), return_inverse=True)[1]
    return numbers
