"""Which samples of a split are probed, and what the ledger of it will hold. Needs no torch."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from choral.predict.ledger import LedgerMeta
from choral.predict.plan import evaluation_of
from choral.predict.probes.families import IDENTITY, Family, Probe
from choral.predict.voices import Voice
from choral.runfolder import RunFolder
from choral.shards.splits import key_hashes

FEATURES = 64
"""Numbers that are kept of the features of an image."""
SEED = 0
"""Of directions, places and noise, and of the choice of samples; not the run's, so that runs can be compared."""
MOST_BYTES = 256 << 20
"""Of a ledger of probes before compression; with more classes, fewer samples are probed."""
_VERSION = "1"  # of what the changes look like


def probe_path(folder: RunFolder, split: str) -> Path:
    """Return where the ledger of the probes of a split lies."""
    return folder.path / "probes" / f"{split}.parquet"


def probes_in(views: Sequence[str]) -> tuple[Probe, ...]:
    """Return the probes among the views of a ledger."""
    return tuple(_probe(view) for view in views if view != IDENTITY)


def chosen_rows(keys: Sequence[str], most: int) -> NDArray[np.bool_]:
    """Return which samples are probed, (N,): at most so many, those with the smallest hashes of their keys."""
    hashes = key_hashes(keys, SEED, "probed")
    chosen = np.zeros(len(keys), np.bool_)
    chosen[np.argsort(hashes, kind="stable")[:most]] = True
    return chosen


def affordable(most: int, classes: int, probes: int) -> int:
    """Return how many samples are probed, of `most` that were asked for: their predictions must not exceed MOST_BYTES."""
    return max(1, min(most, MOST_BYTES // (4 * classes * (probes + 1))))


def probe_meta(
    voices: Sequence[Voice], precision: str, split: str, dataset: str, families: Sequence[Family], samples: int
) -> LedgerMeta:
    """Return what the ledger will hold.

    Args:
        voices: of the run, all of them.
        precision: `train.precision`.
        split, dataset: that is probed, and its fingerprint.
        families: of the probes.
        samples: that are probed, where there are more.
    """
    outputs = voices[0].outputs
    mean = "mean" if outputs.task == "regression" else "soft"
    name = mean if len(voices) > 1 else f"member/{voices[0].name}"
    names = [probe.name for family in families for probe in family.probes]
    asked = hashlib.sha256(f"{_VERSION} {SEED} {samples}".encode()).hexdigest()
    return LedgerMeta(
        classes=outputs.names,
        members=(name,),
        views=(IDENTITY, *names),
        split=split,
        dataset=dataset,
        evaluation=f"{evaluation_of(voices, precision)}-{asked}",
        task=outputs.task,
        features=FEATURES,
    )


def is_of(meta: LedgerMeta, evaluation: str) -> bool:
    """Whether probes are of the networks that an evaluation is of; see `LedgerMeta.evaluation`."""
    return meta.evaluation.partition("-")[0] == evaluation


def _probe(name: str) -> Probe:
    family, _, strength = name.partition("@")
    return Probe(family, abs(float(strength)), -1 if strength.startswith("-") else 1)
