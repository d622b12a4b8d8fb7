"""Probes whose answers are made up, beside runs of `made_runs`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from choral.analysis.probes.families import FAMILIES, IDENTITY, Family
from choral.analysis.probes.plan import FEATURES, probe_path
from choral.inference.ledger import Ledger, LedgerMeta, features_of, ledger_table, merge_parts, write_part
from choral.runs.run_dir import RunDir


def made_probes(
    folder: RunDir,
    split: str,
    labels: NDArray[np.int64],
    wrong: Mapping[str, float],
    families: Sequence[Family] = FAMILIES,
    evaluation: str = "e",
    classes: Sequence[str] = ("x", "y", "z"),
    features: Mapping[str, NDArray[Any]] | None = None,
    seed: int = 0,
) -> Ledger:
    """Write RUN/probes/SPLIT.parquet of samples SPLIT00000 and so on.

    Args:
        folder, split, labels: whose.
        wrong: probe (rotation@30, or the family for all of its strengths, or identity) to the share of wrong answers; of
            others, that of the identity.
        families: that are probed.
        evaluation: of the run's ledger.
        classes: names.
        features: probe to (N, 64); else noise that is the same for all probes of a sample.
        seed: of who is wrong: hard samples are so under every probe.
    """
    rng = np.random.default_rng(seed)
    hardness, noise = rng.random(len(labels)), rng.normal(size=(len(labels), FEATURES))
    names = [IDENTITY, *(probe.name for family in families for probe in family.probes)]
    meta = LedgerMeta(tuple(classes), ("soft",), tuple(names), split, "d", f"{evaluation}-p", features=FEATURES)
    columns: dict[tuple[str, str], NDArray[np.float32]] = {}
    for name in names:
        share = wrong.get(name, wrong.get(name.partition("@")[0], wrong[IDENTITY]))
        said = np.where(hardness < share, (labels + 1) % len(classes), labels)
        values = np.full((len(labels), len(classes)), 0.2 / (len(classes) - 1), np.float32)
        values[np.arange(len(labels)), said] = 0.8
        columns["soft", name] = values
        columns["soft", features_of(name)] = (features or {}).get(name, noise).astype(np.float32)
    keys = [f"{split}{number:05d}" for number in range(len(labels))]
    path = probe_path(folder, split)
    write_part(path.parent / "parts", 0, 1, ledger_table(meta, keys, labels, columns))
    merge_parts(path.parent / "parts", 1, keys, path, meta)
    return Ledger.open(path)
