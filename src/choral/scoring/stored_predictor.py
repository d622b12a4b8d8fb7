"""What a scoreboard keeps of a predictor: so little a sample that every metric of the table can be computed anew.

Of multiclass the class that it answers with and the loss of the true one, of other tasks the predictions. With the
samples' keys and labels, kept once for all that were asked about them, any two predictors can be compared in pairs when
their runs are long deleted.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from choral.ensembles.score_rows import SEED
from choral.inference.ledger import Ledger
from choral.metrics.estimate import Estimate, bounded
from choral.metrics.intervals import resampled_means
from choral.metrics.per_sample import correct, label_log_losses, log_losses, r2_of_sums
from choral.metrics.proportions import of_share
from choral.metrics.ranking import affordable_draws, mean_average_precision, resampled_mean_average_precisions
from choral.scoring.predictor import Predictor

METRICS = {
    "multiclass": ("accuracy", "log_loss"),
    "multilabel": ("mean_ap", "log_loss"),
    "regression": ("rmse", "mae", "r2"),
}
"""Of each task, the one that the table is about first. Of several targets these are means, of R2 alone comparable."""
LESS_IS_BETTER = ("log_loss", "rmse", "mae")


@dataclass(frozen=True)
class Samples:
    """The samples that predictors are compared on.

    Attributes:
        keys: (N,) sorted.
        labels: (N,) int64, or (N, labels or targets) float32, as a ledger has them.
    """

    keys: list[str]
    labels: NDArray[Any]

    @classmethod
    def of(cls, ledger: Ledger) -> Samples:
        """Return the samples of a ledger."""
        return cls(ledger.keys, ledger.labels)

    def digest(self, dataset: str, split: str, task: str, classes: Sequence[str]) -> str:
        """Return 16 hexadecimal digits for all of this, keys and labels: what is equal in them can be compared."""
        found = hashlib.sha256(json.dumps([dataset, split, task, list(classes), self.keys]).encode())
        found.update(np.ascontiguousarray(self.labels).tobytes())
        return found.hexdigest()[:16]


@dataclass(frozen=True)
class Record:
    """What one predictor said.

    Attributes:
        predictions: (N,) int32 classes that it answers with, or (N, labels or targets) float32.
        losses: (N,) float64 log losses of multiclass; None where the predictor gives no probabilities.
    """

    predictions: NDArray[Any]
    losses: NDArray[np.float64] | None = None

    @classmethod
    def of(cls, predictor: Predictor) -> Record:
        """Return what is kept of a predictor."""
        labels, said = predictor.ledger.labels, predictor.predictions
        if predictor.ledger.meta.task != "multiclass":
            return cls(said)
        losses = log_losses(labels, said) if predictor.gives_probabilities else None
        return cls(predictor.answers.astype(np.int32), losses)

    @property
    def digest(self) -> str:
        """A checksum of what was said."""
        found = hashlib.sha256(np.ascontiguousarray(self.predictions).tobytes())
        found.update(b"" if self.losses is None else self.losses.tobytes())
        return found.hexdigest()

    def of_samples(self, mask: NDArray[np.bool_]) -> Record:
        """Return what was said of some of the samples."""
        return Record(self.predictions[mask], None if self.losses is None else self.losses[mask])


def packed(columns: Mapping[str, Any]) -> bytes:
    """Return columns (lists of text, or arrays of one or two dimensions) as the bytes of a Parquet file.

    The same columns give the same bytes.
    """
    arrays = {name: _column(values) for name, values in columns.items()}
    stream = io.BytesIO()
    pq.write_table(pa.table(arrays), stream, compression="zstd", use_dictionary=False)
    return stream.getvalue()


def unpacked(content: bytes) -> dict[str, Any]:
    """Return what `packed` was given; ValueError or ArrowException where it was something else."""
    table = pq.read_table(pa.BufferReader(content))
    return {name: _values(table[name].combine_chunks()) for name in table.column_names}


def estimates_of(task: str, labels: NDArray[Any], records: Mapping[str, Record]) -> dict[str, dict[str, Estimate]]:
    """Return the metrics of each record, all on the same draws of samples, so that any two can be compared in pairs.

    Returns:
        metric (of `METRICS`) to id to estimate; a record without losses has no log loss.
    """
    if not records:
        return {metric: {} for metric in METRICS[task]}
    by_task = {"multiclass": _of_classes, "multilabel": _of_labels, "regression": _of_numbers}
    return by_task[task](labels, records)


def _of_classes(labels: NDArray[Any], records: Mapping[str, Record]) -> dict[str, dict[str, Estimate]]:
    hits = {name: correct(labels, record.predictions) for name, record in records.items()}
    losses = {name: record.losses for name, record in records.items() if record.losses is not None}
    drawn = resampled_means(np.stack([*hits.values(), *losses.values()], axis=1), seed=SEED).T
    return {
        "accuracy": {
            name: of_share(_mean(values, drawn[number]), len(labels))
            for number, (name, values) in enumerate(hits.items())
        },
        "log_loss": {
            name: _mean(values, drawn[len(hits) + number]) for number, (name, values) in enumerate(losses.items())
        },
    }


def _of_labels(labels: NDArray[Any], records: Mapping[str, Record]) -> dict[str, dict[str, Estimate]]:
    truth, said = labels > 0, {name: record.predictions for name, record in records.items()}
    draws = affordable_draws(truth.size * len(said))
    precisions = resampled_mean_average_precisions(truth, list(said.values()), seed=SEED, draws=draws).T
    losses = {name: label_log_losses(truth, values) for name, values in said.items()}
    drawn = resampled_means(np.stack(list(losses.values()), axis=1), seed=SEED).T
    return {
        "mean_ap": {
            name: bounded(mean_average_precision(truth, values), column)
            for (name, values), column in zip(said.items(), precisions, strict=True)
        },
        "log_loss": {name: _mean(values, column) for (name, values), column in zip(losses.items(), drawn, strict=True)},
    }


def _of_numbers(labels: NDArray[Any], records: Mapping[str, Record]) -> dict[str, dict[str, Estimate]]:
    """Each metric is a mean over the targets; RMSE and MAE of several targets mix their units, R2 does not."""
    truth = labels.astype(np.float64)
    centred = truth - truth.mean(axis=0)
    errors = {name: record.predictions.astype(np.float64) - truth for name, record in records.items()}
    columns = [centred, centred**2, *(part for error in errors.values() for part in (np.abs(error), error**2))]
    width = truth.shape[1]
    drawn = resampled_means(np.concatenate(columns, axis=1), seed=SEED)
    means = np.array([math.fsum(column) / len(truth) for column in np.concatenate(columns, axis=1).T])[None]
    found: dict[str, dict[str, Estimate]] = {metric: {} for metric in METRICS["regression"]}
    for number, name in enumerate(errors):
        values = [_number_metrics(table, width, number) for table in (means, drawn)]
        for metric in found:
            found[metric][name] = Estimate(float(values[0][metric][0]), values[1][metric])
    return found


def _number_metrics(means: NDArray[np.float64], width: int, number: int) -> dict[str, NDArray[np.float64]]:
    """Return (draws,) metrics of one record from (draws, columns) means, each the mean over the targets."""
    place = 2 * width * (number + 1)
    absolute, squared = means[:, place : place + width], means[:, place + width : place + 2 * width]
    variances = means[:, width : 2 * width] - means[:, :width] ** 2
    return {
        "rmse": np.sqrt(squared).mean(axis=1),
        "mae": absolute.mean(axis=1),
        "r2": r2_of_sums(squared, variances).mean(axis=1),
    }


def _mean(values: NDArray[np.float64], draws: NDArray[np.float64]) -> Estimate:
    return Estimate(math.fsum(values) / len(values), draws)


def _column(values: Any) -> pa.Array:
    if isinstance(values, list):
        return pa.array(values, pa.string())
    if values.ndim == 1:
        return pa.array(values)
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])


def _values(column: pa.Array) -> Any:
    if pa.types.is_string(column.type):
        return column.to_pylist()
    if pa.types.is_fixed_size_list(column.type):
        return column.flatten().to_numpy().reshape(len(column), column.type.list_size)
    return column.to_numpy()
