"""What the scoreboard stores of a predictor: the least data from which every metric of the table can be recomputed.

For multiclass these are the decided class and the log loss of each sample, for other tasks the predictions. Together with
the keys and labels, which are stored once per set of samples, any two predictors can be compared in pairs, even after their
runs were deleted.
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
from choral.metrics.estimate import Estimate, logit_scale_estimate
from choral.metrics.intervals import bootstrap_means
from choral.metrics.per_sample import correct, log_losses, multilabel_log_losses, r2_from_sums
from choral.metrics.proportions import with_wilson_interval
from choral.metrics.ranking import affordable_draws, bootstrap_mean_average_precisions, mean_average_precision
from choral.scoring.predictor import Predictor

METRICS = {
    "multiclass": ("accuracy", "log_loss"),
    "multilabel": ("mean_ap", "log_loss"),
    "regression": ("rmse", "mae", "r2"),
}
"""Metrics of each task, the default of the table first. For several targets they are means, of which only R2 has no unit."""
LOWER_IS_BETTER = ("log_loss", "rmse", "mae")


@dataclass(frozen=True)
class StoredSamples:
    """The samples that predictors are compared on.

    Attributes:
        keys: (N,) sorted.
        labels: (N,) int64, or (N, labels or targets) float32, as in a ledger.
    """

    keys: list[str]
    labels: NDArray[Any]

    @classmethod
    def of(cls, ledger: Ledger) -> StoredSamples:
        """Return the samples of a ledger."""
        return cls(ledger.keys, ledger.labels)

    def digest(self, dataset: str, split: str, task: str, classes: Sequence[str]) -> str:
        """Return the first 16 hexadecimal digits of a hash of the arguments, keys and labels; equal ones can be compared."""
        found = hashlib.sha256(json.dumps([dataset, split, task, list(classes), self.keys]).encode())
        found.update(np.ascontiguousarray(self.labels).tobytes())
        return found.hexdigest()[:16]


@dataclass(frozen=True)
class StoredPredictions:
    """The predictions of one predictor.

    Attributes:
        predictions: (N,) int32 decided classes, or (N, labels or targets) float32.
        losses: (N,) float64 log losses of multiclass; None where the predictor gives no probabilities.
    """

    predictions: NDArray[Any]
    losses: NDArray[np.float64] | None = None

    @classmethod
    def of(cls, predictor: Predictor) -> StoredPredictions:
        """Return what is stored of a predictor."""
        labels, predictions = predictor.ledger.labels, predictor.predictions
        if predictor.ledger.meta.task != "multiclass":
            return cls(predictions)
        losses = log_losses(labels, predictions) if predictor.gives_probabilities else None
        return cls(predictor.decisions.astype(np.int32), losses)

    @property
    def digest(self) -> str:
        """A checksum of predictions and losses."""
        found = hashlib.sha256(np.ascontiguousarray(self.predictions).tobytes())
        found.update(b"" if self.losses is None else self.losses.tobytes())
        return found.hexdigest()

    def select(self, mask: NDArray[np.bool_]) -> StoredPredictions:
        """Return the predictions of the samples in a mask."""
        return StoredPredictions(self.predictions[mask], None if self.losses is None else self.losses[mask])


def write_parquet_bytes(columns: Mapping[str, Any]) -> bytes:
    """Return columns (lists of text, or arrays of one or two dimensions) as the bytes of a Parquet file.

    The same columns give the same bytes.
    """
    arrays = {name: _to_arrow(values) for name, values in columns.items()}
    stream = io.BytesIO()
    pq.write_table(pa.table(arrays), stream, compression="zstd", use_dictionary=False)
    return stream.getvalue()


def read_parquet_bytes(content: bytes) -> dict[str, Any]:
    """Return the columns that `write_parquet_bytes` wrote; raises ValueError or ArrowException on anything else."""
    table = pq.ParquetFile(pa.BufferReader(content)).read()  # `read_table` imports pandas, if that is installed
    return {name: _from_arrow(table[name].combine_chunks()) for name in table.column_names}


def compute_estimates(
    task: str, labels: NDArray[Any], records: Mapping[str, StoredPredictions]
) -> dict[str, dict[str, Estimate]]:
    """Return the metrics of each record on the same bootstrap draws, so that any two can be compared in pairs.

    Returns:
        metric (of `METRICS`) to id to estimate; a record without losses has no log loss.
    """
    if not records:
        return {metric: {} for metric in METRICS[task]}
    by_task = {
        "multiclass": _estimate_multiclass,
        "multilabel": _estimate_multilabel,
        "regression": _estimate_regression,
    }
    return by_task[task](labels, records)


def _estimate_multiclass(
    labels: NDArray[Any], records: Mapping[str, StoredPredictions]
) -> dict[str, dict[str, Estimate]]:
    hits = {name: correct(labels, record.predictions) for name, record in records.items()}
    losses = {name: record.losses for name, record in records.items() if record.losses is not None}
    drawn = bootstrap_means(np.stack([*hits.values(), *losses.values()], axis=1), seed=SEED).T
    return {
        "accuracy": {
            name: with_wilson_interval(_mean(values, drawn[number]), len(labels))
            for number, (name, values) in enumerate(hits.items())
        },
        "log_loss": {
            name: _mean(values, drawn[len(hits) + number]) for number, (name, values) in enumerate(losses.items())
        },
    }


def _estimate_multilabel(
    labels: NDArray[Any], records: Mapping[str, StoredPredictions]
) -> dict[str, dict[str, Estimate]]:
    truth, predictions = labels > 0, {name: record.predictions for name, record in records.items()}
    draws = affordable_draws(truth.size * len(predictions))
    precisions = bootstrap_mean_average_precisions(truth, list(predictions.values()), seed=SEED, draws=draws).T
    losses = {name: multilabel_log_losses(truth, values) for name, values in predictions.items()}
    drawn = bootstrap_means(np.stack(list(losses.values()), axis=1), seed=SEED).T
    return {
        "mean_ap": {
            name: logit_scale_estimate(mean_average_precision(truth, values), column)
            for (name, values), column in zip(predictions.items(), precisions, strict=True)
        },
        "log_loss": {name: _mean(values, column) for (name, values), column in zip(losses.items(), drawn, strict=True)},
    }


def _estimate_regression(
    labels: NDArray[Any], records: Mapping[str, StoredPredictions]
) -> dict[str, dict[str, Estimate]]:
    """Return means over the targets; RMSE and MAE of several targets mix their units, R2 does not."""
    truth = labels.astype(np.float64)
    centred = truth - truth.mean(axis=0)
    errors = {name: record.predictions.astype(np.float64) - truth for name, record in records.items()}
    columns = [centred, centred**2, *(part for error in errors.values() for part in (np.abs(error), error**2))]
    width = truth.shape[1]
    drawn = bootstrap_means(np.concatenate(columns, axis=1), seed=SEED)
    means = np.array([math.fsum(column) / len(truth) for column in np.concatenate(columns, axis=1).T])[None]
    found: dict[str, dict[str, Estimate]] = {metric: {} for metric in METRICS["regression"]}
    for number, name in enumerate(errors):
        values = [_compute_regression_metrics(table, width, number) for table in (means, drawn)]
        for metric in found:
            found[metric][name] = Estimate(float(values[0][metric][0]), values[1][metric])
    return found


def _compute_regression_metrics(means: NDArray[np.float64], width: int, number: int) -> dict[str, NDArray[np.float64]]:
    """Return (draws,) metrics of one record from (draws, columns) means, each the mean over the targets."""
    place = 2 * width * (number + 1)
    absolute, squared = means[:, place : place + width], means[:, place + width : place + 2 * width]
    variances = means[:, width : 2 * width] - means[:, :width] ** 2
    return {
        "rmse": np.sqrt(squared).mean(axis=1),
        "mae": absolute.mean(axis=1),
        "r2": r2_from_sums(squared, variances).mean(axis=1),
    }


def _mean(values: NDArray[np.float64], draws: NDArray[np.float64]) -> Estimate:
    return Estimate(math.fsum(values) / len(values), draws)


def _to_arrow(values: Any) -> pa.Array:
    if isinstance(values, list):
        return pa.array(values, pa.string())
    if values.ndim == 1:
        return pa.array(values)
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])


def _from_arrow(column: pa.Array) -> Any:
    if pa.types.is_string(column.type):
        return column.to_pylist()
    if pa.types.is_fixed_size_list(column.type):
        return np.from_dlpack(column.flatten()).reshape(len(column), column.type.list_size)
    return np.from_dlpack(column)  # `to_numpy` imports pandas, if that is installed
