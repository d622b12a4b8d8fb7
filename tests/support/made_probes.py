"""Probe ledgers with made-up predictions, for runs of `made_runs`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from choral.analysis.probes.families import FAMILIES, IDENTITY, Family
from choral.analysis.probes.plan import FEATURE_SIZE, probe_path
from choral.inference.ledger import Ledger, LedgerMeta, build_ledger_table, feature_column_name, merge_parts, write_part
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
    """Write RUN/probes/SPLIT.parquet with samples SPLIT00000 and so on.

    Args:
        folder, split, labels: of the run and split.
        wrong: probe (rotation@30, a family for all of its strengths, or identity) to its error rate; others have that of
            the identity.
        families: that are probed.
        evaluation: of the run's ledger.
        classes: names.
        features: probe to (N, 64); others get noise that is the same for all probes of a sample.
        seed: of which samples are wrong; hard samples are hard under every probe.
    """
    rng = np.random.default_rng(seed)
    hardness, noise = rng.random(len(labels)), rng.normal(size=(len(labels), FEATURE_SIZE))
    names = [IDENTITY, *(probe.name for family in families for probe in family.probes)]
    meta = LedgerMeta(tuple(classes), ("soft",), tuple(names), split, "d", f"{evaluation}-p", features=FEATURE_SIZE)
    columns: dict[tuple[str, str], NDArray[np.float32]] = {}
    for name in names:
        share = wrong.get(name, wrong.get(name.partition("@")[0], wrong[IDENTITY]))
        predicted = np.where(hardness < share, (labels + 1) % len(classes), labels)
        values = np.full((len(labels), len(classes)), 0.2 / (len(classes) - 1), np.float32)
        values[np.arange(len(labels)), predicted] = 0.8
        columns["soft", name] = values
        columns["soft", feature_column_name(name)] = (features or {}).get(name, noise).astype(np.float32)
    keys = [f"{split}{number:05d}" for number in range(len(labels))]
    path = probe_path(folder, split)
    write_part(path.parent / "parts", 0, 1, build_ledger_table(meta, keys, labels, columns))
    merge_parts(path.parent / "parts", 1, keys, path, meta)
    return Ledger.open(path)
