"""Losses and meters, compared with a few lines of plain PyTorch and with scikit-learn."""

from __future__ import annotations

import json
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn import metrics
from torch import Tensor
from torch.nn import functional as F

from choral.config import Config, DataConfig, TrainConfig
from choral.data.loading.device_loader import Batch
from choral.models.output_spec import OutputSpec
from choral.training.objective import Objective

DEVICE = torch.device("cpu")
CLASSES = ("a", "b", "c", "d")


class FixedTargets:
    """Targets without an index."""

    def __init__(self, task: str, values: np.ndarray, names: tuple[str, ...]) -> None:
        self.task, self.names, self._values = task, names, values

    def __len__(self) -> int:
        return len(self._values)

    def blocks(self, rows: None) -> Iterator[np.ndarray]:
        yield from np.array_split(self._values, 2)


def objective(task: str, values: np.ndarray, names: tuple[str, ...] = CLASSES, **train: object) -> Objective:
    config = Config(task=task, data=DataConfig(shards="x"), train=TrainConfig(**train))  # type: ignore[arg-type]
    split = SimpleNamespace(
        targets=FixedTargets(task, values, names), training_rows=None, weights=None, probabilities=None
    )
    return Objective.from_config(config.train, split, DEVICE)  # type: ignore[arg-type]


def batch_of(labels: Tensor, valid: Tensor | None = None, first: int = 0, **mixed: Tensor) -> Batch:
    count = len(labels)
    valid = torch.ones(count, dtype=torch.bool) if valid is None else valid
    rows = np.arange(first, first + count)
    return Batch(torch.zeros(count, 3, 2, 2), labels, valid, rows, 0, 0, **mixed)


@pytest.fixture
def logits() -> Tensor:
    return torch.randn(9, 4, generator=torch.Generator().manual_seed(3)) * 2


LABELS = torch.tensor([0, 0, 0, 0, 0, 1, 1, 2, 2])
MANY = torch.tensor([[1.0, 0, 0, 1], [0, 0, 0, 0], [1, 1, 1, 1]]).repeat(3, 1)
NUMBERS = torch.tensor([[1.0, 200], [2, 500], [4, 300], [7, 100], [3, 50], [2, 75], [1, 90], [5, 20], [9, 10]])


def test_one_vs_rest_predictions_are_normalised_sigmoids(logits: Tensor) -> None:
    """With bce, sigmoids are divided by their sum: in predictions, in validation, and after loading a checkpoint."""
    goal = objective("multiclass", LABELS.numpy(), loss="bce")
    sigmoids = logits.double().sigmoid()
    expected = sigmoids / sigmoids.sum(dim=1, keepdim=True)
    restored = OutputSpec.from_meta(json.loads(json.dumps(goal.meta())))
    for spec in (goal, restored):
        torch.testing.assert_close(spec.predictions(logits.double()), expected.float())
    assert torch.equal(expected.argmax(1), logits.argmax(1))
    meter = goal.meter(9)
    meter.add(logits, batch_of(LABELS))
    report = meter.report(meter.totals)
    assert report["log_loss"] == pytest.approx(metrics.log_loss(LABELS, expected, labels=range(4)), rel=1e-5)
    assert report["accuracy"] == (logits.argmax(1) == LABELS).double().mean().item()
    before = {key: value for key, value in goal.meta().items() if key != "one_against_all"}  # checkpoints of before
    for meta in (before, objective("multiclass", LABELS.numpy()).meta()):
        assert torch.equal(OutputSpec.from_meta(meta).predictions(logits), logits.softmax(dim=1))


def test_class_weights_equal_pytorch(logits: Tensor) -> None:
    """Class d has no sample: three classes share the weight, with mean 1 over the training samples."""
    weights = 9 / (3 * torch.tensor([5.0, 2, 2]))
    twin = F.cross_entropy(logits, LABELS, weight=torch.cat([weights, torch.zeros(1)]), reduction="none")
    losses = objective("multiclass", LABELS.numpy(), class_weights="balanced").losses(logits, batch_of(LABELS))
    torch.testing.assert_close(losses, twin)
    assert weights[LABELS].mean() == pytest.approx(1)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_mixed_loss_equals_cross_entropy_to_the_mixed_target(logits: Tensor, smoothing: float) -> None:
    partners, shares = LABELS.roll(4), torch.linspace(0, 1, 9)
    batch = batch_of(LABELS, partners=partners, shares=shares)
    losses = objective("multiclass", LABELS.numpy(), label_smoothing=smoothing).losses(logits, batch)
    soft = shares[:, None] * F.one_hot(LABELS, 4) + (1 - shares[:, None]) * F.one_hot(partners, 4)
    soft = soft * (1 - smoothing) + smoothing / 4
    torch.testing.assert_close(losses, F.cross_entropy(logits, soft, reduction="none"))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_loss_multiclass(logits: Tensor, gamma: float) -> None:
    of_label = logits.softmax(1)[torch.arange(9), LABELS]
    twin = -((1 - of_label) ** gamma) * of_label.log()
    focal = objective("multiclass", LABELS.numpy(), loss="focal", focal_gamma=gamma)
    torch.testing.assert_close(focal.losses(logits, batch_of(LABELS)), twin)
    sure = torch.tensor([[200.0, 0, 0, 0]], requires_grad=True)
    focal.losses(sure, batch_of(LABELS[:1])).sum().backward()
    assert sure.grad is not None and sure.grad.isfinite().all()


def test_focal_loss_multilabel(logits: Tensor) -> None:
    p = torch.where(MANY > 0, logits.sigmoid(), 1 - logits.sigmoid())
    twin = (-((1 - p) ** 2) * p.log()).mean(1)
    torch.testing.assert_close(objective("multilabel", MANY.numpy(), loss="focal").losses(logits, batch_of(MANY)), twin)


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_bce_with_smoothing_and_mixing(logits: Tensor, task: str) -> None:
    labels = LABELS if task == "multiclass" else MANY
    spread = 0.1 / 4 if task == "multiclass" else 0.1 / 2
    shares = torch.linspace(0, 1, 9)
    many = F.one_hot(LABELS, 4) if task == "multiclass" else MANY
    soft = shares[:, None] * many + (1 - shares[:, None]) * many.roll(2, 0)
    twin = F.binary_cross_entropy_with_logits(logits, soft * 0.9 + spread, reduction="none").mean(1)
    bce = objective(task, labels.numpy(), loss="bce", label_smoothing=0.1)
    batch = batch_of(labels, partners=labels.roll(2, 0), shares=shares)
    torch.testing.assert_close(bce.losses(logits, batch), twin)


def test_class_weights_multilabel(logits: Tensor) -> None:
    """A label's ones and zeros have equal influence: n / (2 ones) and n / (2 zeros)."""
    ones = MANY.sum(0)
    weights = torch.where(MANY > 0, 9 / (2 * ones), 9 / (2 * (9 - ones)))
    twin = (F.binary_cross_entropy_with_logits(logits, MANY, reduction="none") * weights).mean(1)
    weighted = objective("multilabel", MANY.numpy(), class_weights="balanced")
    torch.testing.assert_close(weighted.losses(logits, batch_of(MANY)), twin)
    torch.testing.assert_close(weights.mean(0), torch.ones(4))


@pytest.mark.parametrize(("loss", "function"), [("mse", F.mse_loss), ("l1", F.l1_loss), ("huber", F.huber_loss)])
def test_regression_targets_are_standardised_and_restored(loss: str, function: object) -> None:
    outputs = torch.randn(9, 2, generator=torch.Generator().manual_seed(1))
    training = NUMBERS[:6].double()
    mean, std = training.mean(0), training.std(0, unbiased=False)
    goal = objective("regression", NUMBERS[:6].numpy(), ("length", "weight"), loss=loss)
    twin = function(outputs, ((NUMBERS - mean) / std).float(), reduction="none").mean(1)  # type: ignore[operator]
    torch.testing.assert_close(goal.losses(outputs, batch_of(NUMBERS)), twin)
    restored = OutputSpec.from_meta(goal.meta()).predictions(outputs)
    torch.testing.assert_close(restored, (outputs * std + mean).float())
    exact = ((NUMBERS - mean) / std).float()
    torch.testing.assert_close(goal.predictions(exact), NUMBERS)
    assert goal.losses(exact, batch_of(NUMBERS)).max() < 1e-6


def test_unreadable_samples_are_ignored(logits: Tensor) -> None:
    valid = torch.arange(9) != 4
    losses = objective("multiclass", LABELS.numpy()).losses(logits, batch_of(LABELS, valid))
    assert losses[4] == 0 and (losses[valid] > 0).all()


def measured(goal: Objective, logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Return the report over two ranks, one of which cannot read its last sample."""
    logits, labels = torch.cat([logits, logits[:1]]), torch.cat([labels, labels[:1]])
    valid, totals = torch.arange(10) < 9, []
    for rows in (slice(0, 4), slice(4, 10)):
        meter = goal.meter(10)
        meter.add(logits[rows], batch_of(labels[rows], valid[rows], rows.start))
        totals.append(meter.totals)
    report = goal.meter(10).report(totals[0] + totals[1])
    assert report.pop("n") == 9
    return report


def test_multiclass_meter(logits: Tensor) -> None:
    report = measured(objective("multiclass", LABELS.numpy()), logits, LABELS)
    assert report == {
        "accuracy": pytest.approx(metrics.accuracy_score(LABELS, logits.argmax(1))),
        "log_loss": pytest.approx(metrics.log_loss(LABELS, logits.double().softmax(1), labels=range(4)), rel=1e-6),
    }


def test_multilabel_meter(logits: Tensor) -> None:
    report = measured(objective("multilabel", MANY.numpy()), logits, MANY)
    truth, probabilities = MANY.int().numpy(), logits.double().sigmoid()
    losses = [metrics.log_loss(truth[:, label], probabilities[:, label]) for label in range(4)]
    assert report == {
        "mean_ap": pytest.approx(metrics.average_precision_score(truth, logits, average="macro")),
        "f1": pytest.approx(metrics.f1_score(truth, (logits > 0).int(), average="micro")),
        "log_loss": pytest.approx(np.mean(losses)),
    }


def test_regression_meter(logits: Tensor) -> None:
    goal = objective("regression", NUMBERS.numpy(), ("length", "weight"))
    report = measured(goal, logits[:, :2], NUMBERS)
    truth, found = NUMBERS.double().numpy(), goal.predictions(logits[:, :2]).double().numpy()
    assert report == {
        "mae": pytest.approx(metrics.mean_absolute_error(truth, found)),
        "rmse": pytest.approx(metrics.root_mean_squared_error(truth, found)),
        "r2": pytest.approx(metrics.r2_score(truth, found)),
    }


def test_micro_batches_add_up_to_the_batch(logits: Tensor) -> None:
    """Weighted and mixed losses depend on their sample only, so accumulation changes no gradient."""
    goal = objective("multiclass", LABELS.numpy(), class_weights="balanced", label_smoothing=0.1)
    partners, shares = LABELS.roll(2), torch.linspace(0, 1, 9)
    gradients = []
    for micro_batches in ([slice(0, 9)], [slice(0, 2), slice(2, 7), slice(7, 9)]):
        inputs = logits.clone().requires_grad_()
        for rows in micro_batches:
            batch = batch_of(LABELS[rows], partners=partners[rows], shares=shares[rows])
            (goal.losses(inputs[rows], batch).sum() / 9).backward()
        gradients.append(inputs.grad)
    torch.testing.assert_close(gradients[0], gradients[1])
