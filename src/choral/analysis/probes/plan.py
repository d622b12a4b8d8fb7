"""Plans the probes of a split: which samples, and what the ledger will hold. Needs no torch."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from choral.analysis.probes.families import IDENTITY, Family, Probe, parse_families
from choral.config import Config
from choral.core.errors import ConfigError, DataError
from choral.data.shards.index import Dataset
from choral.data.shards.splits import hash_keys
from choral.inference.evaluation_plan import plan_evaluation
from choral.inference.ledger import Ledger, LedgerMeta
from choral.inference.trained_model import TrainedModel
from choral.runs.run_dir import RunDir

FEATURE_SIZE = 64
"""Numbers that are kept of an image's features."""
SEED = 0
"""Of directions, positions and noise, and of the choice of samples. Not the run's seed, so that runs are comparable."""
MAX_LEDGER_BYTES = 256 << 20
"""Of a ledger of probes before compression. With many classes, fewer samples are probed."""
_VERSION = "1"  # change it when a perturbation changes


def probe_path(folder: RunDir, split: str) -> Path:
    """Return the path of the ledger of a split's probes."""
    return folder.path / "probes" / f"{split}.parquet"


def parse_probes(views: Sequence[str]) -> tuple[Probe, ...]:
    """Return the probes among the views of a ledger."""
    return tuple(parse_probe(view) for view in views if view != IDENTITY)


def select_samples(keys: Sequence[str], most: int) -> NDArray[np.bool_]:
    """Return the (N,) mask of the samples to probe: at most `most`, those with the smallest hashes of their keys."""
    hashes = hash_keys(keys, SEED, "probed")
    selected = np.zeros(len(keys), np.bool_)
    selected[np.argsort(hashes, kind="stable")[:most]] = True
    return selected


@dataclass(frozen=True)
class ProbePlan:
    """What probing a split involves.

    Attributes:
        models: all networks of the run; each column is their mean.
        families: to probe.
        samples: of the split, at most; see `select_samples`.
        path, meta: of the ledger.
        is_done: whether the ledger is complete.
    """

    models: list[TrainedModel]
    families: tuple[Family, ...]
    samples: int
    path: Path
    meta: LedgerMeta
    is_done: bool


def plan_probes(config: Config, folder: RunDir, dataset: Dataset, split: str, names: Sequence[str]) -> ProbePlan:
    """Return the plan of probing a split of a run.

    Families that were probed before stay in the plan, so probing further families repeats them.

    Args:
        config, folder: of the run.
        dataset: of the run.
        split: such as val.
        names: of families; no names: all.

    Raises:
        ConfigError: an unknown family; the data are not those that the run was trained on.
        ChoralError: no member has been trained.
        DataError: there is no such split, or the data have other classes than the members were trained on.
    """
    selected = parse_families(names)
    single_view = config.replace(evaluate=config.evaluate.replace(splits=(split,), views=(IDENTITY,), held_out=False))
    plan = plan_evaluation(single_view, folder, dataset)
    if plan.suffix:
        raise ConfigError(f"data.shards: {dataset.folder} holds other data than {folder.path} was trained on")
    path = probe_path(folder, split)
    meta = _build_meta(plan.ledgers[split][1], plan.models, selected, config.analyze.probe_samples)
    stored = _read_meta(path)
    if stored is not None and stored == replace(meta, views=stored.views):
        probed = {probe.family for probe in parse_probes(stored.views)}
        selected = parse_families([*probed, *(family.name for family in selected)])
        meta = replace(meta, views=_build_views(selected))
    samples = _limit_samples(config.analyze.probe_samples, meta)
    return ProbePlan(plan.models, selected, samples, path, meta, stored == meta)


def _build_meta(
    ledger: LedgerMeta, models: Sequence[TrainedModel], families: Sequence[Family], samples: int
) -> LedgerMeta:
    """Return the metadata of the ledger of probes, from those of an evaluation without test-time views."""
    mean = "mean" if ledger.task == "regression" else "soft"
    request = hashlib.sha256(f"{_VERSION} {SEED} {samples}".encode()).hexdigest()
    return replace(
        ledger,
        members=(mean if len(models) > 1 else f"member/{models[0].name}",),
        views=_build_views(families),
        evaluation=f"{ledger.evaluation}-{request}",
        features=FEATURE_SIZE,
    )


def _build_views(families: Sequence[Family]) -> tuple[str, ...]:
    return (IDENTITY, *(probe.name for family in families for probe in family.probes))


def _limit_samples(most: int, meta: LedgerMeta) -> int:
    """Return how many samples are probed, of `most`: their predictions must not exceed MAX_LEDGER_BYTES."""
    return max(1, min(most, MAX_LEDGER_BYTES // (4 * len(meta.classes) * len(meta.views))))


def _read_meta(path: Path) -> LedgerMeta | None:
    try:
        return Ledger.open(path).meta if path.is_file() else None
    except DataError:
        return None


def matches_evaluation(meta: LedgerMeta, evaluation: str) -> bool:
    """Whether probes were made with the networks of an evaluation; see `LedgerMeta.evaluation`."""
    return meta.evaluation.partition("-")[0] == evaluation


def parse_probe(name: str) -> Probe:
    """Return the probe with a view's name, such as rotation@-30."""
    family, _, strength = name.partition("@")
    return Probe(family, abs(float(strength)), -1 if strength.startswith("-") else 1)
