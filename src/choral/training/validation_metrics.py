"""Validation metrics as sums over ranks, divided once at the end, so each sample counts once at any world size."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from choral.data.loading.device_loader import Batch
from choral.metrics.per_sample import f1_from_counts, r2_from_sums
from choral.metrics.ranking import mean_average_precision
from choral.models.output_spec import OutputSpec


class Meter(Protocol):
    """Accumulates one rank's predictions; the metrics come from the totals summed over ranks."""

    @property
    def totals(self) -> Tensor:
        """Float64, on the device, of the same shape on every rank; the caller sums them over ranks."""

    def add(self, logits: Tensor, batch: Batch) -> None:
        """Add a batch of (B, outputs) logits; samples that could not be read are ignored."""

    def report(self, totals: Tensor) -> dict[str, float]:
        """Return the metrics by name, and `n`, the number of samples counted."""


class MulticlassMeter:
    """Accuracy and log loss (nats), for one class per sample."""

    def __init__(self, output_spec: OutputSpec, device: torch.device | None) -> None:
        self._output_spec = output_spec
        self.totals = torch.zeros(3, dtype=torch.float64, device=device)

    def add(self, logits: Tensor, batch: Batch) -> None:
        """Add hits, losses and samples of a batch."""
        losses = F.cross_entropy(self._output_spec.class_scores(logits), batch.labels, reduction="none") * batch.valid
        hits = (logits.argmax(1) == batch.labels) & batch.valid
        self.totals += torch.stack([hits.sum().double(), losses.double().sum(), batch.valid.sum().double()])

    def report(self, totals: Tensor) -> dict[str, float]:
        """Return accuracy, log_loss and n."""
        hits, losses, count = totals.tolist()
        return {"accuracy": hits / count, "log_loss": losses / count, "n": count}


class MultilabelMeter:
    """Mean average precision (macro), F1 (micro, at 0.5) and log loss (nats per label), for several labels per sample.

    Average precision needs the ranking of all predictions, so the totals are a table of the whole split: each rank fills
    in the rows of its samples, and the sum over ranks is complete. The table takes 16 bytes per sample and label.
    """

    def __init__(self, samples: int, labels: int, device: torch.device | None) -> None:
        self.totals = torch.zeros(samples, 2 * labels + 1, dtype=torch.float64, device=device)

    def add(self, logits: Tensor, batch: Batch) -> None:
        """Fill in the rows of a batch: logits, labels, and a 1 for each sample that could be read."""
        rows = torch.from_numpy(batch.rows).to(self.totals.device)
        valid = batch.valid.double().unsqueeze(1)
        self.totals[rows] = torch.cat([logits.double(), batch.labels.double(), torch.ones_like(valid)], dim=1) * valid

    def report(self, totals: Tensor) -> dict[str, float]:
        """Return mean_ap, f1, log_loss and n."""
        table = totals[totals[:, -1] > 0]
        logits, labels = table[:, :-1].chunk(2, dim=1)
        found = logits > 0  # a probability above 0.5
        right = labels > 0
        return {
            "mean_ap": mean_average_precision(right.cpu().numpy(), logits.cpu().numpy()),
            "f1": f1_from_counts(
                *((a & b).sum().item() for a, b in ((found, right), (found, ~right), (~found, right)))
            ),
            "log_loss": F.binary_cross_entropy_with_logits(logits, labels).item(),
            "n": float(len(table)),
        }


class RegressionMeter:
    """Mean absolute error, root mean squared error and R2, each averaged over the targets, in the targets' units."""

    def __init__(self, output_spec: OutputSpec, device: torch.device | None) -> None:
        self._output_spec = output_spec
        self._mean = torch.tensor(output_spec.target_mean, dtype=torch.float64, device=device)
        self.totals = torch.zeros(5, len(output_spec.names), dtype=torch.float64, device=device)

    def add(self, logits: Tensor, batch: Batch) -> None:
        """Add, for each target: samples, errors, squared errors, and the sums that its variance needs."""
        truth = batch.labels.double()
        valid = batch.valid.double().unsqueeze(1).expand_as(truth)
        errors = self._output_spec.predictions(logits).double() - truth
        centred = truth - self._mean  # near 0, so that squares do not swallow the variance
        self.totals += torch.stack(
            [(value * valid).sum(dim=0) for value in (valid, errors.abs(), errors**2, centred, centred**2)]
        )

    def report(self, totals: Tensor) -> dict[str, float]:
        """Return mae, rmse, r2 and n."""
        count, absolute, squared, sums, squares = totals.cpu().numpy()
        return {
            "mae": float((absolute / count).mean()),
            "rmse": float(((squared / count) ** 0.5).mean()),
            "r2": float(r2_from_sums(squared, squares - sums**2 / count).mean()),
            "n": float(count[0]),
        }
