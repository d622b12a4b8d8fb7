"""Forward passes over one chunk: each view of the images is computed once, for all models with the same input spec."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from choral.config import Average
from choral.data.loading.input_spec import InputSpec
from choral.inference.chunks import Columns
from choral.inference.ledger import feature_column_name
from choral.inference.prediction_tasks import PredictionTask
from choral.inference.views.transforms import apply_view
from choral.models.output_spec import OutputSpec

_SMALLEST = float(np.finfo(np.float32).eps)  # smallest probability whose logarithm is taken, as in `ensembles.rules`


class ViewTransform(Protocol):
    """Applies a view to a batch of preprocessed images."""

    def __call__(self, images: Tensor, view: str, input_spec: InputSpec, rows: NDArray[np.int64]) -> Tensor:
        """Return (B, 3, S, S) from (B, 3, S, S) normalised images, which are (B,) rows of the index."""


class FeatureReader(Protocol):
    """Reads the features of a network, the input of its last layer, together with its outputs."""

    def __call__(self, network: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the (B, outputs) logits of a network, and its (B, D) features."""

    def reduce(self, name: str, features: Tensor) -> Tensor:
        """Return the (B, width) float32 numbers to store of (B, D) features of the model `name`."""


def apply_test_time_view(images: Tensor, view: str, input_spec: InputSpec, rows: NDArray[np.int64]) -> Tensor:
    """Return the images under a test-time view, which is the same for all rows."""
    return apply_view(images, view, input_spec.mean, input_spec.std)


@dataclass(frozen=True)
class InferenceOptions:
    """How the forward passes are made, the same for all models.

    Attributes:
        views: averaged in "tta"; one forward pass each.
        columns: the predictions to return: names of views, and "tta".
        autocast: creates the context of a forward pass.
        average: over views; see `EvaluateConfig.average`.
        view_transform: applies a view to images.
        feature_reader: reads features to store beside the predictions of each view; None: no features.
        check_stop: called before each view of a chunk. Its exceptions pass through, and the chunk is lost. For passes with
            so many views that a stop request could not wait for the end of the chunk.
        weights: of the views in the average, summing to 1; (): equal weights.
    """

    views: tuple[str, ...]
    columns: tuple[str, ...]
    autocast: Callable[[], AbstractContextManager[object]]
    average: Average = "probabilities"
    view_transform: ViewTransform = apply_test_time_view
    feature_reader: FeatureReader | None = None
    check_stop: Callable[[], None] = lambda: None
    weights: tuple[float, ...] = ()


class ChunkPredictions:
    """Running sums of the predictions for the rows of a chunk; a column becomes the mean over its models.

    Args:
        rows: (n,) of the chunk.
        columns: (member, view) of the ledger.
        outputs: number of outputs of each network.
        readable: (n,) which rows could be read.
        features: numbers stored beside each column, as `build_ledger_table` takes them.
    """

    def __init__(
        self,
        rows: NDArray[np.int64],
        columns: Sequence[tuple[str, str]],
        outputs: int,
        readable: NDArray[np.bool_],
        features: int = 0,
    ) -> None:
        self.rows, self.readable = rows, readable
        self._sums: Columns = {column: np.zeros((len(rows), outputs), np.float32) for column in columns}
        if features:
            feature_columns = [(member, feature_column_name(view)) for member, view in columns]
            self._sums |= {column: np.zeros((len(rows), features), np.float32) for column in feature_columns}
        self._counts = {member: np.zeros(len(rows), dtype=np.int64) for member, _ in columns}

    def add(self, member: str, mask: NDArray[np.bool_], predictions: Mapping[str, Tensor]) -> None:
        """Add the predictions of one model.

        Args:
            member: the column that they go into.
            mask: (n,) which rows of the chunk the model predicts.
            predictions: view to (rows in the mask, outputs).
        """
        self._counts[member][mask] += 1
        for view, values in predictions.items():
            self._sums[member, view][mask] += values.cpu().numpy()

    def compute_means(self) -> tuple[NDArray[np.int64], NDArray[np.int64], Columns]:
        """Return the rows that could be read, those that could not, and the columns of the former."""
        columns: Columns = {}
        for (member, view), sums in self._sums.items():
            counts = self._counts[member][self.readable, None].astype(np.float32)
            columns[member, view] = np.divide(sums[self.readable], counts, dtype=np.float32)
        return self.rows[self.readable], self.rows[~self.readable], columns


def predict_chunk(
    networks: Sequence[tuple[PredictionTask, nn.Module]],
    images: Tensor,
    options: InferenceOptions,
    predictions: ChunkPredictions,
) -> None:
    """Run networks with the same input spec on a chunk, and add their predictions.

    Args:
        networks: at least one, each with its task.
        images: (B, 3, S, S), the chunk preprocessed to their input spec.
        options: how the forward passes are made.
        predictions: of the chunk, to add to.
    """
    input_spec = networks[0][0].model.input_spec
    active = []  # networks that predict at least one row of the chunk, with a mask of those rows
    for task, network in networks:
        mask = np.ones(len(predictions.rows), np.bool_) if task.rows is None else task.rows[predictions.rows]
        if mask.any():
            active.append((task, network, mask))
    averages = [ViewAverage(task.model.outputs, options) for task, _, _ in active]
    with torch.inference_mode():
        for view in options.views if active else ():
            options.check_stop()
            transformed = options.view_transform(images, view, input_spec, predictions.rows)
            for (task, network, mask), average in zip(active, averages, strict=True):
                part = transformed if mask.all() else transformed[torch.from_numpy(mask).to(transformed.device)]
                if options.feature_reader is None:
                    with options.autocast():
                        logits = network(part)
                else:
                    with options.autocast():
                        logits, features = options.feature_reader(network, part)
                    reduced = options.feature_reader.reduce(task.model.name, features)
                    average.add_features(feature_column_name(view), reduced)
                average.add(view, logits)
        for (task, _, mask), average in zip(active, averages, strict=True):
            predictions.add(task.column, mask, average.compute_columns())


@torch.inference_mode()
def predict_batch(
    networks: Sequence[tuple[nn.Module, OutputSpec]], input_spec: InputSpec, images: Tensor, options: InferenceOptions
) -> list[dict[str, Tensor]]:
    """Return the predictions of each network, column to (B, outputs) float32.

    Args:
        networks: in evaluation mode, on the device of the images, each with its output spec.
        input_spec: of all of them.
        images: (B, 3, S, S) float, preprocessed to that spec.
        options: how the forward passes are made.
    """
    averages = [ViewAverage(outputs, options) for _, outputs in networks]
    for view in options.views:
        transformed = apply_view(images, view, input_spec.mean, input_spec.std)
        for (network, _), average in zip(networks, averages, strict=True):
            with options.autocast():
                logits = network(transformed)
            average.add(view, logits)
    return [average.compute_columns() for average in averages]


class ViewAverage:
    """The predictions of one network under each view, and their average."""

    def __init__(self, outputs: OutputSpec, options: InferenceOptions) -> None:
        self._outputs, self._options = outputs, options
        self._columns: dict[str, Tensor] = {}
        self._total: Tensor | None = None

    def add(self, view: str, logits: Tensor) -> None:
        """Add the (B, outputs) logits, of any float type, under a view."""
        predictions = self._outputs.predictions(logits)
        if view in self._options.columns:
            self._columns[view] = predictions
        if "tta" in self._options.columns:
            values = self._to_summand(predictions, logits)
            if self._options.weights:
                values = values * self._options.weights[self._options.views.index(view)]
            self._total = values if self._total is None else self._total + values

    def add_features(self, column: str, values: Tensor) -> None:
        """Add (B, width) features under the name of their column."""
        self._columns[column] = values

    def compute_columns(self) -> dict[str, Tensor]:
        """Return the predictions of the columns that the options name, and the features."""
        if self._total is None:
            return self._columns
        mean = self._total if self._options.weights else self._total / len(self._options.views)
        if self._options.average == "logits":
            mean = self._outputs.predictions(mean)
        elif self._options.average == "geometric":
            mean = mean.sigmoid() if self._outputs.task == "multilabel" else mean.softmax(dim=1)
        return {**self._columns, "tta": mean}

    def _to_summand(self, predictions: Tensor, logits: Tensor) -> Tensor:
        """Return what is summed over views: probabilities, logits, or for "geometric" log probabilities or log odds."""
        if self._options.average == "logits":
            return logits.float()
        if self._options.average == "geometric":
            logs = predictions.clamp(min=_SMALLEST).log()
            return logs - (1 - predictions).clamp(min=_SMALLEST).log() if self._outputs.task == "multilabel" else logs
        return predictions
