"""Networks are asked about a batch: each look at the images is viewed once, for all the networks that share it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from choral.config import Average
from choral.model.outputs import Outputs
from choral.predict.chunks import Columns
from choral.predict.questions import Question
from choral.predict.views.shown import apply_view
from choral.predict.voices import Voice

_SMALLEST = float(np.finfo(np.float32).eps)  # of a probability whose logarithm is taken, as `ensemble.combine` does


@dataclass(frozen=True)
class Manner:
    """How networks are asked, all alike.

    Attributes:
        views: all that "tta" averages, one forward pass each.
        columns: which predictions are wanted: views by name, and "tta".
        autocast: makes the context of a forward pass.
        average: of views; see `EvaluateConfig.average`.
    """

    views: tuple[str, ...]
    columns: tuple[str, ...]
    autocast: Callable[[], AbstractContextManager[object]]
    average: Average = "probabilities"


class ChunkAnswers:
    """What is known so far about the rows of a chunk; a column is the mean over the voices that were asked for it.

    Args:
        rows: (n,) of the chunk.
        columns: members and views of the ledger.
        outputs: of each network.
        readable: (n,) which could be read.
    """

    def __init__(
        self,
        rows: NDArray[np.int64],
        columns: Sequence[tuple[str, str]],
        outputs: int,
        readable: NDArray[np.bool_],
    ) -> None:
        self.rows, self.readable = rows, readable
        self._sums: Columns = {column: np.zeros((len(rows), outputs), np.float32) for column in columns}
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


def ask(networks: Sequence[tuple[Question, nn.Module]], images: Tensor, manner: Manner, answers: ChunkAnswers) -> None:
    """Ask networks about a chunk.

    Args:
        networks: at least one, each with its question; all share a look.
        images: (B, 3, S, S), what that look shows of the chunk.
        manner: how they are asked.
        answers: of the chunk, that are added to.
    """
    look = networks[0][0].voice.look
    whom = []
    for question, network in networks:
        mine = np.ones(len(answers.rows), np.bool_) if question.rows is None else question.rows[answers.rows]
        if mine.any():
            whom.append((question, network, mine))
    means = [_Mean(question.voice.outputs, manner) for question, _, _ in whom]
    with torch.inference_mode():
        for view in manner.views if whom else ():
            shown = apply_view(images, view, look.mean, look.std)
            for (_, network, mine), mean in zip(whom, means, strict=True):
                part = shown if mine.all() else shown[torch.from_numpy(mine).to(shown.device)]
                with manner.autocast():
                    logits = network(part)
                mean.add(view, logits)
        for (question, _, mine), mean in zip(whom, means, strict=True):
            answers.add(question.column, mine, mean.found())


@torch.inference_mode()
def member_predictions(network: nn.Module, voice: Voice, images: Tensor, manner: Manner) -> dict[str, Tensor]:
    """Return one network's predictions, (B, outputs) float32 each, for the wanted columns.

    Args:
        network: in evaluation mode, on the device of the images.
        voice: whose it is; says what its outputs mean, and how images are normalised.
        images: (B, 3, S, S) float, normalised.
        manner: how it is asked.
    """
    mean = _Mean(voice.outputs, manner)
    for view in manner.views:
        with manner.autocast():
            logits = network(apply_view(images, view, voice.mean, voice.std))
        mean.add(view, logits)
    return mean.found()


class _Mean:
    """What one network says under each view, and the mean of that."""

    def __init__(self, outputs: Outputs, manner: Manner) -> None:
        self._outputs, self._manner = outputs, manner
        self._found: dict[str, Tensor] = {}
        self._total: Tensor | None = None

    def add(self, view: str, logits: Tensor) -> None:
        """Take the outputs of the network, (B, outputs) of any float type, under a view."""
        predictions = self._outputs.predictions(logits)
        if view in self._manner.columns:
            self._found[view] = predictions
        if "tta" in self._manner.columns:
            values = self._averaged(predictions, logits)
            self._total = values if self._total is None else self._total + values

    def found(self) -> dict[str, Tensor]:
        """Return the predictions of the wanted columns."""
        if self._total is None:
            return self._found
        mean = self._total / len(self._manner.views)
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
