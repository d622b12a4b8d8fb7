"""Networks are asked about a batch: each look at the images is viewed once, for all the networks that share it."""

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
from choral.inference.ledger import features_of
from choral.inference.prediction_tasks import PredictionTask
from choral.inference.views.transforms import apply_view
from choral.models.output_spec import Outputs

_SMALLEST = float(np.finfo(np.float32).eps)  # of a probability whose logarithm is taken, as `ensemble.combine` does


class ViewTransform(Protocol):
    """Makes of what a look shows of images what a view shows of it."""

    def __call__(self, images: Tensor, view: str, input_spec: InputSpec, rows: NDArray[np.int64]) -> Tensor:
        """Return (B, 3, S, S) of (B, 3, S, S) normalised images, which are those of (B,) rows of the index."""


class FeatureReader(Protocol):
    """Keeps something of what networks make of images before the last layer."""

    def __call__(self, network: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the (B, outputs) outputs of a network, and its (B, D) features."""

    def kept(self, name: str, features: Tensor) -> Tensor:
        """Return what is kept of (B, D) features of the network of a name, (B, width) float32."""


def test_time_view(images: Tensor, view: str, input_spec: InputSpec, rows: NDArray[np.int64]) -> Tensor:
    """Return images as test-time views show them; no sample is shown otherwise than another."""
    return apply_view(images, view, input_spec.mean, input_spec.std)


@dataclass(frozen=True)
class InferenceOptions:
    """How networks are asked, all alike.

    Attributes:
        views: all that "tta" averages, one forward pass each.
        columns: which predictions are wanted: views by name, and "tta".
        autocast: makes the context of a forward pass.
        average: of views; see `EvaluateConfig.average`.
        weights: of the views in that average, summing to 1; none: all alike.
        shows: what images look like under a view.
        features: what is kept of them beside the predictions, under each view; None: nothing.
        check: called before each view of a chunk; what it raises passes, and the chunk is lost. For many views, after
            which a stop would come too late.
    """

    views: tuple[str, ...]
    columns: tuple[str, ...]
    autocast: Callable[[], AbstractContextManager[object]]
    average: Average = "probabilities"
    shows: ViewTransform = test_time_view
    features: FeatureReader | None = None
    check: Callable[[], None] = lambda: None
    weights: tuple[float, ...] = ()


class ChunkPredictions:
    """What is known so far about the rows of a chunk; a column is the mean over the voices that were asked for it.

    Args:
        rows: (n,) of the chunk.
        columns: members and views of the ledger.
        outputs: of each network.
        readable: (n,) which could be read.
        features: numbers that are kept beside each column, as `ledger_table` takes them.
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
            kept = [(member, features_of(view)) for member, view in columns]
            self._sums |= {column: np.zeros((len(rows), features), np.float32) for column in kept}
        self._heard = {member: np.zeros(len(rows), dtype=np.int64) for member, _ in columns}

    def add(self, member: str, asked: NDArray[np.bool_], found: Mapping[str, Tensor]) -> None:
        """Add what one voice says by view, about the rows that it was asked about."""
        self._heard[member][asked] += 1
        for view, predictions in found.items():
            self._sums[member, view][asked] += predictions.cpu().numpy()

    def finished(self) -> tuple[NDArray[np.int64], NDArray[np.int64], Columns]:
        """Return the rows that could be read, those that could not, and the columns of the first."""
        columns: Columns = {}
        for (member, view), sums in self._sums.items():
            heard = self._heard[member][self.readable, None].astype(np.float32)
            columns[member, view] = np.divide(sums[self.readable], heard, dtype=np.float32)
        return self.rows[self.readable], self.rows[~self.readable], columns


def predict_chunk(
    networks: Sequence[tuple[PredictionTask, nn.Module]],
    images: Tensor,
    options: InferenceOptions,
    answers: ChunkPredictions,
) -> None:
    """Ask networks about a chunk.

    Args:
        networks: at least one, each with its question; all share a look.
        images: (B, 3, S, S), what that look shows of the chunk.
        manner: how they are asked.
        answers: of the chunk, that are added to.
    """
    input_spec = networks[0][0].model.input_spec
    whom = []
    for task, network in networks:
        mine = np.ones(len(answers.rows), np.bool_) if task.rows is None else task.rows[answers.rows]
        if mine.any():
            whom.append((task, network, mine))
    means = [ViewMean(task.model.outputs, options) for task, _, _ in whom]
    with torch.inference_mode():
        for view in options.views if whom else ():
            options.check()
            shown = options.shows(images, view, input_spec, answers.rows)
            for (task, network, mine), mean in zip(whom, means, strict=True):
                part = shown if mine.all() else shown[torch.from_numpy(mine).to(shown.device)]
                if options.features is None:
                    with options.autocast():
                        logits = network(part)
                else:
                    with options.autocast():
                        logits, features = options.features(network, part)
                    mean.keep(features_of(view), options.features.kept(task.model.name, features))
                mean.add(view, logits)
        for (task, _, mine), mean in zip(whom, means, strict=True):
            answers.add(task.column, mine, mean.found())


@torch.inference_mode()
def predictions_of(
    networks: Sequence[tuple[nn.Module, Outputs]], input_spec: InputSpec, images: Tensor, options: InferenceOptions
) -> list[dict[str, Tensor]]:
    """Return what each network says, (B, outputs) float32 each, for the wanted columns.

    Args:
        networks: in evaluation mode, on the device of the images, each with what its outputs mean; all share a look.
        look: how the images were normalised.
        images: (B, 3, S, S) float, what that look shows.
        manner: how they are asked.
    """
    means = [ViewMean(outputs, options) for _, outputs in networks]
    for view in options.views:
        shown = apply_view(images, view, input_spec.mean, input_spec.std)
        for (network, _), mean in zip(networks, means, strict=True):
            with options.autocast():
                logits = network(shown)
            mean.add(view, logits)
    return [mean.found() for mean in means]


class ViewMean:
    """What one network says under each view, and the mean of that."""

    def __init__(self, outputs: Outputs, options: InferenceOptions) -> None:
        self._outputs, self._manner = outputs, options
        self._found: dict[str, Tensor] = {}
        self._total: Tensor | None = None

    def add(self, view: str, logits: Tensor) -> None:
        """Take the outputs of the network, (B, outputs) of any float type, under a view."""
        predictions = self._outputs.predictions(logits)
        if view in self._manner.columns:
            self._found[view] = predictions
        if "tta" in self._manner.columns:
            values = self._averaged(predictions, logits)
            if self._manner.weights:
                values = values * self._manner.weights[self._manner.views.index(view)]
            self._total = values if self._total is None else self._total + values

    def keep(self, name: str, values: Tensor) -> None:
        """Take (B, width) features under the name of their column."""
        self._found[name] = values

    def found(self) -> dict[str, Tensor]:
        """Return the predictions of the wanted columns, and features."""
        if self._total is None:
            return self._found
        mean = self._total if self._manner.weights else self._total / len(self._manner.views)
        if self._manner.average == "logits":
            mean = self._outputs.predictions(mean)
        elif self._manner.average == "geometric":
            mean = mean.sigmoid() if self._outputs.task == "multilabel" else mean.softmax(dim=1)
        return {**self._found, "tta": mean}

    def _averaged(self, predictions: Tensor, logits: Tensor) -> Tensor:
        """Return what is summed over views."""
        if self._manner.average == "logits":
            return logits.float()
        if self._manner.average == "geometric":
            logs = predictions.clamp(min=_SMALLEST).log()
            return logs - (1 - predictions).clamp(min=_SMALLEST).log() if self._outputs.task == "multilabel" else logs
        return predictions
