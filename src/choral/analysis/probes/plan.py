"""Which samples of a split are probed, and what the ledger of it will hold. Needs no torch."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from choral.analysis.probes.families import IDENTITY, Family, Probe, families_of
from choral.config import Config
from choral.core.errors import ConfigError, DataError
from choral.data.shards.index import Dataset
from choral.data.shards.splits import key_hashes
from choral.inference.evaluation_plan import plan_evaluation
from choral.inference.ledger import Ledger, LedgerMeta
from choral.inference.trained_models import TrainedModel
from choral.runs.run_dir import RunDir

FEATURES = 64
"""Numbers that are kept of the features of an image."""
SEED = 0
"""Of directions, places and noise, and of the choice of samples; not the run's, so that runs can be compared."""
MOST_BYTES = 256 << 20
"""Of a ledger of probes before compression; with more classes, fewer samples are probed."""
_VERSION = "1"  # of what the changes look like


def probe_path(folder: RunDir, split: str) -> Path:
    """Return where the ledger of the probes of a split lies."""
    return folder.path / "probes" / f"{split}.parquet"


def probes_in(views: Sequence[str]) -> tuple[Probe, ...]:
    """Return the probes among the views of a ledger."""
    return tuple(probe_of(view) for view in views if view != IDENTITY)


def chosen_rows(keys: Sequence[str], most: int) -> NDArray[np.bool_]:
    """Return which samples are probed, (N,): at most so many, those with the smallest hashes of their keys."""
    hashes = key_hashes(keys, SEED, "probed")
    chosen = np.zeros(len(keys), np.bool_)
    chosen[np.argsort(hashes, kind="stable")[:most]] = True
    return chosen


@dataclass(frozen=True)
class ProbePlan:
    """What probing a split comes to.

    Attributes:
        voices: all networks of the run, of which each column is the mean.
        families: that are asked about.
        samples: of the split at most; see `chosen_rows`.
        path, meta: of the ledger.
        is_done: whether a ledger is there that holds at least this.
    """

    models: list[TrainedModel]
    families: tuple[Family, ...]
    samples: int
    path: Path
    meta: LedgerMeta
    is_done: bool


def plan_probes(config: Config, folder: RunDir, dataset: Dataset, split: str, names: Sequence[str]) -> ProbePlan:
    """Return what probing a split of a run comes to.

    Families that have been probed before stay: asking about further ones asks about all of them together.

    Args:
        config, folder: of the run.
        dataset: its own.
        split: such as val.
        names: of families; none: all.

    Raises:
        ConfigError: an unknown family; the data are not those that the run was trained on.
        ChoralError: no member has been trained.
        DataError: there is no such split, or the data hold other classes than the members were trained on.
    """
    wanted = families_of(names)
    plain = replace(config, evaluate=replace(config.evaluate, splits=(split,), views=(IDENTITY,), held_out=False))
    plan = plan_evaluation(plain, folder, dataset)
    if plan.suffix:
        raise ConfigError(f"data.shards: {dataset.folder} holds other data than {folder.path} was trained on")
    path = probe_path(folder, split)
    meta = _meta(plan.ledgers[split][1], plan.models, wanted, config.analyze.probe_samples)
    found = _found(path)
    if found is not None and found == replace(meta, views=found.views):
        have = {probe.family for probe in probes_in(found.views)}
        wanted = families_of([*have, *(family.name for family in wanted)])
        meta = replace(meta, views=_views(wanted))
    samples = _affordable(config.analyze.probe_samples, meta)
    return ProbePlan(plan.models, wanted, samples, path, meta, found == meta)


def _meta(ledger: LedgerMeta, models: Sequence[TrainedModel], families: Sequence[Family], samples: int) -> LedgerMeta:
    """Return what the ledger of probes will hold, of what an ordinary one without test-time views would."""
    mean = "mean" if ledger.task == "regression" else "soft"
    asked = hashlib.sha256(f"{_VERSION} {SEED} {samples}".encode()).hexdigest()
    return replace(
        ledger,
        members=(mean if len(models) > 1 else f"member/{models[0].name}",),
        views=_views(families),
        evaluation=f"{ledger.evaluation}-{asked}",
        features=FEATURES,
    )


def _views(families: Sequence[Family]) -> tuple[str, ...]:
    return (IDENTITY, *(probe.name for family in families for probe in family.probes))


def _affordable(most: int, meta: LedgerMeta) -> int:
    """Return how many samples are probed, of `most` that were asked for: their predictions must not exceed MOST_BYTES."""
    return max(1, min(most, MOST_BYTES // (4 * len(meta.classes) * len(meta.views))))


def _found(path: Path) -> LedgerMeta | None:
    try:
        return Ledger.open(path).meta if path.is_file() else None
    except DataError:
        return None


def is_of(meta: LedgerMeta, evaluation: str) -> bool:
    """Whether probes are of the networks that an evaluation is of; see `LedgerMeta.evaluation`."""
    return meta.evaluation.partition("-")[0] == evaluation


def probe_of(name: str) -> Probe:
    """Return the probe that a view of a ledger is called after."""
    family, _, strength = name.partition("@")
    return Probe(family, abs(float(strength)), -1 if strength.startswith("-") else 1)
