"""Predictions of engines for a whole split, and their differences from a reference.

The images are prepared by the loader that evaluations read through, each once for all engines; memory does not grow with
the split.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from choral.config.files import config_from_dict
from choral.core.errors import DataError
from choral.data.loading.host_loader import BatchRequest
from choral.data.loading.host_stage import HostStage
from choral.data.loading.input_spec import distinct_image_specs
from choral.data.loading.progress import SplitProgress
from choral.data.loading.rank_place import RankPlace
from choral.data.loading.split import Split, open_dataset, open_split
from choral.deploy.bundle.engine import Engine, EnsemblePredictions
from choral.deploy.bundle.read import Bundle
from choral.inference.ledger import Ledger
from choral.metrics.per_sample import log_losses
from choral.scoring.policy import PredictionPolicy, select_policy_inputs
from choral.scoring.stored_predictor import LOWER_IS_BETTER, METRICS, StoredPredictions, compute_estimates

_BATCH = 32


@dataclass(frozen=True)
class SplitPredictions:
    """The predictions of several engines for the samples of a split.

    Attributes:
        split: its name.
        keys: (N,) of the samples that could be read.
        labels: (N,) classes, (N, labels) or (N, targets).
        predictions_by_name: the predictions of each engine, by its name.
    """

    split: str
    keys: list[str]
    labels: NDArray[Any]
    predictions_by_name: Mapping[str, EnsemblePredictions]


@dataclass(frozen=True)
class PredictionDifference:
    """The difference between two sets of predictions of the same samples.

    Attributes:
        n: samples.
        largest: difference of a probability; of regression as a share of the largest number.
        same: samples that are decided alike; of regression None.
        metric: accuracy, mean_ap or rmse.
        value: of it.
        reference: that of the other.
        difference: value less reference, with the ends of its paired 95 % interval.
    """

    n: int
    largest: float
    same: int | None
    metric: str
    value: float
    reference: float
    difference: tuple[float, float, float]

    @property
    def worse(self) -> float:
        """By how much of the metric it is worse; below 0 where it is better."""
        return self.difference[0] if self.metric in LOWER_IS_BETTER else -self.difference[0]

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON."""
        return {**asdict(self), "difference": list(self.difference)}


def predict_split(bundle: Bundle, engines: Mapping[str, Engine], split: str = "", data: str = "") -> SplitPredictions:
    """Predict all samples of a split with several engines.

    Args:
        bundle: whose inputs the engines take.
        engines: by name.
        split: of the data; "": the validation split of the run.
        data: folder of the shards; "": where the run had them.

    Raises:
        DataError: the data are not there, have other classes than the bundle, or no such split.
    """
    config = config_from_dict(bundle.content["provenance"]["config"], f"{bundle.path}: provenance")
    own = config.data.replace(cache_gib=0, shards=data or config.data.shards)
    config, split = config.replace(data=own), split or own.val_split
    place = RankPlace(0, 1, torch.device("cpu"), 1)
    opened = open_split(config, open_dataset(own), split, place)
    if tuple(opened.targets.names) != bundle.classes:
        raise DataError(
            f"{own.shards}: has the classes {', '.join(opened.targets.names)}, the bundle {', '.join(bundle.classes)}"
        )
    rows = np.arange(len(opened))
    requests = (BatchRequest(rows[at : at + _BATCH], 0, at // _BATCH) for at in range(0, len(rows), _BATCH))
    image_specs = distinct_image_specs([member.input_spec for member in bundle.members])
    host = HostStage(own, opened, place, bad_log=None).load(requests, image_specs)
    predictions_by_name: dict[str, list[EnsemblePredictions]] = {name: [] for name in engines}
    valid_rows = []
    with host, SplitProgress(f"predicting {split}", len(rows), enabled=True) as progress:
        for batch in host:
            kept = batch.copy_and_release()
            images = [values[kept.valid] for values in kept.all_images]
            valid_rows.append(kept.rows[kept.valid])
            if len(images[0]):
                for name, engine in engines.items():
                    predictions_by_name[name].append(engine.predict_batch(images))
            progress.advance(len(kept.rows))
    return _merge_parts(split, opened, np.concatenate(valid_rows), predictions_by_name)


def _merge_parts(
    name: str, split: Split, rows: NDArray[np.int64], predictions_by_name: Mapping[str, Sequence[EnsemblePredictions]]
) -> SplitPredictions:
    if not len(rows):
        raise DataError(f"{split.index.dataset.folder}: no sample of '{name}' can be read")
    whole = {
        engine: EnsemblePredictions(
            np.concatenate([part.by_member for part in parts], axis=1),
            np.concatenate([part.combined for part in parts]),
        )
        for engine, parts in predictions_by_name.items()
    }
    return SplitPredictions(name, list(split.index.keys(rows)), split.targets.take(rows), whole)


def predictions_from_ledger(policy: PredictionPolicy, ledger: Ledger, keys: Sequence[str]) -> EnsemblePredictions:
    """Return the predictions of a run's ledger for samples, combined by a bundle's policy.

    Args:
        answering: of the bundle.
        ledger: of the evaluation of the run that it comes from.
        keys: of the samples.

    Raises:
        DataError: the ledger is of other weights, or has not all samples or views.
    """
    if ledger.meta.evaluation != policy.evaluation:
        raise DataError(f"{ledger.path}: is of other weights than the bundle; export again")
    member_predictions = select_policy_inputs(policy, ledger)
    if missing := [view for view in member_predictions.views if view not in ledger.views]:
        raise DataError(f"{ledger.path}: has no view {', '.join(missing)}: evaluate with evaluate.keep_views=true")
    own = np.concatenate([stack for _, stack in member_predictions.blocks()], axis=1)
    places = {key: row for row, key in enumerate(ledger.keys)}
    if absent := [key for key in keys if key not in places]:
        raise DataError(f"{ledger.path}: {len(absent)} of {len(keys)} samples are not in it, such as {absent[0]!r}")
    order = [places[key] for key in keys]
    return EnsemblePredictions(own[:, order], policy.combine(own[:, order]))


def compare_predictions(
    policy: PredictionPolicy,
    labels: NDArray[Any],
    predictions_by_name: Mapping[str, EnsemblePredictions],
    reference: EnsemblePredictions,
) -> Iterator[tuple[str, PredictionDifference]]:
    """Yield the difference of each set of predictions from a reference.

    Args:
        answering: of the bundle.
        labels: of the samples, as `SplitPredictions.labels`.
        predictions_by_name: the predictions to compare, by name.
        reference: what they are held against.
    """
    task, metric = policy.task, METRICS[policy.task][0]
    for name, found in predictions_by_name.items():
        records = {"own": _record(policy, labels, found), "reference": _record(policy, labels, reference)}
        estimates = compute_estimates(task, labels, records)[metric]
        gap = estimates["own"].minus(estimates["reference"])
        largest, same = max_difference(policy, found, reference)
        yield (
            name,
            PredictionDifference(
                n=len(labels),
                largest=largest,
                same=same,
                metric=metric,
                value=estimates["own"].value,
                reference=estimates["reference"].value,
                difference=(gap.value, gap.low, gap.high),
            ),
        )


def max_difference(
    policy: PredictionPolicy, found: EnsemblePredictions, reference: EnsemblePredictions
) -> tuple[float, int | None]:
    """Return the largest difference of a probability, and how many samples are decided alike; see `PredictionDifference`."""
    pairs = ((found.combined, reference.combined), (found.by_member, reference.by_member))
    largest = max(float(np.abs(one.astype(np.float64) - other).max()) for one, other in pairs)
    if policy.task == "regression":
        return largest / max(float(np.abs(reference.by_member).max()), 1e-12), None
    alike = policy.decide(found.combined) == policy.decide(reference.combined)
    return largest, int(alike.reshape(len(alike), -1).all(axis=1).sum())


def _record(policy: PredictionPolicy, labels: NDArray[Any], predictions: EnsemblePredictions) -> StoredPredictions:
    if policy.task != "multiclass":
        return StoredPredictions(predictions.combined)
    losses = log_losses(labels, predictions.combined) if policy.gives_probabilities else None
    return StoredPredictions(policy.decide(predictions.combined).astype(np.int32), losses)
