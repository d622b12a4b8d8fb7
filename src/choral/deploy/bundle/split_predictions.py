"""What engines say about a whole split, and how far that is from what they should say.

The images are prepared by the loader that evaluations read through, each once for all engines; memory does not grow with
the split.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from choral.config.files import from_values
from choral.core.errors import DataError
from choral.data.loading.host_loader import BatchRequest
from choral.data.loading.input_pipeline import RankPlace, Split, open_dataset, open_split, shared_samples
from choral.data.loading.progress import SplitProgress
from choral.deploy.bundle.engine import Engine, Predicted
from choral.deploy.bundle.read import Bundle
from choral.inference.ledger import Ledger
from choral.metrics.per_sample import log_losses
from choral.scoring.policy import PredictionPolicy, answer_panel
from choral.scoring.stored_predictor import LESS_IS_BETTER, METRICS, Record, estimates_of

_BATCH = 32


@dataclass(frozen=True)
class Heard:
    """What several engines said about the samples of a split.

    Attributes:
        split: its name.
        keys: (N,) of the samples that could be read.
        labels: (N,) classes, (N, labels) or (N, targets).
        said: name of an engine to what it said about these.
    """

    split: str
    keys: list[str]
    labels: NDArray[Any]
    said: Mapping[str, Predicted]


@dataclass(frozen=True)
class Loss:
    """How one way to answer differs from another on the same samples.

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
        return self.difference[0] if self.metric in LESS_IS_BETTER else -self.difference[0]

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON."""
        return {**asdict(self), "difference": list(self.difference)}


def hear(bundle: Bundle, engines: Mapping[str, Engine], split: str = "", data: str = "") -> Heard:
    """Ask engines about all samples of a split.

    Args:
        bundle: whose inputs the engines take.
        engines: by name.
        split: of the data; "": the validation split of the run.
        data: folder of the shards; "": where the run had them.

    Raises:
        DataError: the data are not there, have other classes than the bundle, or no such split.
    """
    config = from_values(bundle.content["provenance"]["config"], f"{bundle.path}: provenance")
    own = replace(config.data, cache_gib=0, shards=data or config.data.shards)
    config, split = replace(config, data=own), split or own.val_split
    place = RankPlace(0, 1, torch.device("cpu"), 1)
    opened = open_split(config, open_dataset(own), split, place)
    if tuple(opened.targets.names) != bundle.classes:
        raise DataError(
            f"{own.shards}: is about {', '.join(opened.targets.names)}, the bundle about {', '.join(bundle.classes)}"
        )
    rows = np.arange(len(opened))
    orders = (BatchRequest(rows[at : at + _BATCH], 0, at // _BATCH) for at in range(0, len(rows), _BATCH))
    host = shared_samples(own, opened, place, [member.input_spec for member in bundle.members], orders, None)
    said: dict[str, list[Predicted]] = {name: [] for name in engines}
    heard = []
    with host, SplitProgress(f"asking about {split}", len(rows), shown=True) as progress:
        for batch in host:
            kept = batch.kept()
            images = [values[kept.valid] for values in kept.forms]
            heard.append(kept.rows[kept.valid])
            if len(images[0]):
                for name, engine in engines.items():
                    said[name].append(engine.ask(images))
            progress.advance(len(kept.rows))
    return _gathered(split, opened, np.concatenate(heard), said)


def _gathered(name: str, split: Split, rows: NDArray[np.int64], said: Mapping[str, Sequence[Predicted]]) -> Heard:
    if not len(rows):
        raise DataError(f"{split.index.dataset.folder}: no sample of '{name}' can be read")
    whole = {
        engine: Predicted(
            np.concatenate([part.by_member for part in parts], axis=1),
            np.concatenate([part.combined for part in parts]),
        )
        for engine, parts in said.items()
    }
    return Heard(name, list(split.index.keys(rows)), split.targets.of(rows), whole)


def of_ledger(answering: PredictionPolicy, ledger: Ledger, keys: Sequence[str]) -> Predicted:
    """Return what a run's ledger says about samples, answered as a bundle answers.

    Args:
        answering: of the bundle.
        ledger: of the evaluation of the run that it comes from.
        keys: of the samples.

    Raises:
        DataError: the ledger is of other weights, or has not all samples or views.
    """
    if ledger.meta.evaluation != answering.evaluation:
        raise DataError(f"{ledger.path}: is of other weights than the bundle; export again")
    panel = answer_panel(answering, ledger)
    if missing := [view for view in panel.views if view not in ledger.views]:
        raise DataError(f"{ledger.path}: has no view {', '.join(missing)}: evaluate with evaluate.keep_views=true")
    own = np.concatenate([stack for _, stack in panel.blocks()], axis=1)
    places = {key: row for row, key in enumerate(ledger.keys)}
    if absent := [key for key in keys if key not in places]:
        raise DataError(f"{ledger.path}: {len(absent)} of {len(keys)} samples are not in it, such as {absent[0]!r}")
    order = [places[key] for key in keys]
    return Predicted(own[:, order], answering.said(own[:, order]))


def losses_of(
    answering: PredictionPolicy, labels: NDArray[Any], said: Mapping[str, Predicted], reference: Predicted
) -> Iterator[tuple[str, Loss]]:
    """Yield how each of several ways to answer differs from a reference.

    Args:
        answering: of the bundle.
        labels: of the samples, as `Heard.labels`.
        said: by name.
        reference: what they are held against.
    """
    task, metric = answering.task, METRICS[answering.task][0]
    for name, found in said.items():
        records = {"own": _record(answering, labels, found), "reference": _record(answering, labels, reference)}
        estimates = estimates_of(task, labels, records)[metric]
        gap = estimates["own"].minus(estimates["reference"])
        largest, same = apart(answering, found, reference)
        yield (
            name,
            Loss(
                n=len(labels),
                largest=largest,
                same=same,
                metric=metric,
                value=estimates["own"].value,
                reference=estimates["reference"].value,
                difference=(gap.value, gap.low, gap.high),
            ),
        )


def apart(answering: PredictionPolicy, found: Predicted, reference: Predicted) -> tuple[float, int | None]:
    """Return the largest difference of a probability, and how many samples are decided alike; see `Loss`."""
    pairs = ((found.combined, reference.combined), (found.by_member, reference.by_member))
    largest = max(float(np.abs(one.astype(np.float64) - other).max()) for one, other in pairs)
    if answering.task == "regression":
        return largest / max(float(np.abs(reference.by_member).max()), 1e-12), None
    alike = answering.decide(found.combined) == answering.decide(reference.combined)
    return largest, int(alike.reshape(len(alike), -1).all(axis=1).sum())


def _record(answering: PredictionPolicy, labels: NDArray[Any], said: Predicted) -> Record:
    if answering.task != "multiclass":
        return Record(said.combined)
    losses = log_losses(labels, said.combined) if answering.gives_probabilities else None
    return Record(answering.decide(said.combined).astype(np.int32), losses)
