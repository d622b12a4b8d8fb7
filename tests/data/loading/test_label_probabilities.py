"""Class probabilities from columns: soft targets of the loss, or sample weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from choral.config import Config, DataConfig, ResampleConfig, TrainConfig
from choral.core.errors import ChoralError, ConfigError, DataError
from choral.data.loading.device_loader import Batch
from choral.data.loading.label_probabilities import LabelProbabilities
from choral.data.loading.rank_place import RankPlace
from choral.data.loading.split import Split, open_training_split
from choral.data.packing.options import PackOptions
from choral.data.packing.pack import pack
from choral.data.shards.index import Dataset, Index
from choral.training.objective import Objective
from toy_data import CLASSES, colour_image

CPU = torch.device("cpu")
ROWS = {  # label: blau, gelb, rot; invalid columns: wide (above 1), gap, note
    "blau": ("1", "0", "0"),
    "gelb": ("0.2", "0.5", "0.3"),
    "rot": ("0.25", "0.1", "0.65"),
}


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("uncertain")
    lines = ["image,label,b,g,r,wide,gap,note"]
    for number in range(12):
        label = list(ROWS)[number % 3]
        colour_image(next(iter(CLASSES.values())), number).save(root / f"{number}.png")
        lines.append(f"{number}.png,{label},{','.join(ROWS[label])},1.5,{'' if number == 2 else 0},x")
    (root / "list.csv").write_text("\n".join(lines) + "\n")
    pack(str(root / "list.csv"), root / "packed", PackOptions(val=0, test=0, processes=1))
    return root / "packed"


@pytest.fixture(scope="module")
def index(packed: Path) -> Index:
    return Index.open(Dataset.open(packed), "train")


def expected(index: Index) -> np.ndarray:
    return np.array([[float(value) for value in list(ROWS.values())[label]] for label in index.labels])


@pytest.mark.parametrize("columns", [{"rot": "r", "blau": "b", "gelb": "g"}, {"rot": "r", "gelb": "g"}])
def test_probabilities_are_in_class_order_and_one_class_may_be_omitted(index: Index, columns: dict[str, str]) -> None:
    found = LabelProbabilities.open(columns, index)
    rows = np.array([7, 0, 7, 3])
    values = found.take(rows)
    assert values.dtype == np.float32 and values.shape == (4, 3)
    np.testing.assert_allclose(values, expected(index)[rows], atol=1e-6)


def test_weights_are_proportional_to_the_label_probability_with_mean_one(index: Index) -> None:
    found = LabelProbabilities.open({"rot": "r", "blau": "b"}, index)
    own = np.array([1, 0.5, 0.65])[index.labels]
    np.testing.assert_allclose(found.weights(None), own / own.mean(), rtol=1e-6)
    rows = np.array([0, 0, 5])
    np.testing.assert_allclose(found.weights(rows), own / own[rows].mean(), rtol=1e-6)


@pytest.mark.parametrize(
    ("columns", "error", "text"),
    [
        (
            {"rott": "r", "blau": "b"},
            ConfigError,
            r"train\.label_probabilities\.rott: no such class.*mean rot\?",
        ),
        (
            {"rot": "r"},
            ConfigError,
            r"2 classes have no column \(blau, gelb\): expected a column for each class",
        ),
        ({"rot": "r", "blau": "bb"}, DataError, r"no column 'bb'"),
        ({"rot": "note", "blau": "b"}, DataError, r"column 'note' of split train is string, expected numbers"),
        ({"rot": "gap", "blau": "b"}, DataError, r"column 'gap' .* has no value for 1 samples, first '2-"),
        (
            {"rot": "wide", "blau": "b"},
            DataError,
            r"column 'wide' .* is 1\.5 for sample .* expected a probability from 0",
        ),
        ({"rot": "b", "blau": "b"}, DataError, r"the sum of columns b, b of split train is 2 for sample .* at most 1"),
        ({"rot": "r", "blau": "b", "gelb": "b"}, DataError, r"the sum of columns r, b, b .* expected 1$"),
    ],
)
def test_invalid_probabilities_are_refused(
    index: Index, columns: dict[str, str], error: type[ChoralError], text: str
) -> None:
    with pytest.raises(error, match=text):
        LabelProbabilities.open(columns, index)


def training(packed: Path, resample: ResampleConfig | None = None, **train: object) -> tuple[Config, Split]:
    data = DataConfig(shards=str(packed), cache_gib=0, resample=resample or ResampleConfig())
    config = Config(
        data=data,
        train=TrainConfig(label_probabilities={"rot": "r", "blau": "b"}, **train),  # type: ignore[arg-type]
    )
    return config, open_training_split(config, Dataset.open(packed), RankPlace(0, 1, CPU))


def batch_of(rows: np.ndarray, split: Split, **mixed: object) -> Batch:
    labels = torch.from_numpy(split.targets.take(rows))
    valid = torch.ones(len(rows), dtype=torch.bool)
    return Batch(torch.zeros(len(rows), 3, 2, 2), labels, valid, rows, 0, 0, **mixed)  # type: ignore[arg-type]


@pytest.mark.parametrize("loss", ["cross_entropy", "bce", "focal"])
def test_the_loss_uses_the_probabilities_as_targets(packed: Path, index: Index, loss: str) -> None:
    """They are smoothed like labels; the target of a mixed image is the mixture of both."""
    config, split = training(packed, loss=loss, label_smoothing=0.1)
    goal = Objective.from_config(config.train, split, CPU)
    rows, others, shares = np.array([4, 1, 9]), np.array([2, 2, 0]), torch.tensor([0.3, 1.0, 0.6])
    logits = torch.randn(3, 3, generator=torch.Generator().manual_seed(1))
    soft = torch.from_numpy(expected(index)).float()

    def twin(truth: torch.Tensor) -> torch.Tensor:
        truth = truth * 0.9 + 0.1 / 3
        if loss == "cross_entropy":
            return F.cross_entropy(logits, truth, reduction="none")
        if loss == "bce":
            return F.binary_cross_entropy_with_logits(logits, truth, reduction="none").mean(1)
        p = logits.softmax(1)
        return -(truth * (1 - p) ** 2 * p.log()).sum(1)

    torch.testing.assert_close(goal.losses(logits, batch_of(rows, split)), twin(soft[rows]))
    partners = torch.from_numpy(split.targets.take(others))
    mixed = goal.losses(logits, batch_of(rows, split, partners=partners, shares=shares, partner_rows=others))
    torch.testing.assert_close(mixed, twin(shares[:, None] * soft[rows] + (1 - shares[:, None]) * soft[others]))


def test_probability_weights_multiply_the_loss_of_the_label(packed: Path) -> None:
    """The mean weight is 1 over the training rows; the held-out fold does not count."""
    config, split = training(
        packed, ResampleConfig(kind="fold", number=0, count=3, seed=1), label_probabilities_as="weights"
    )
    rows = split.training_rows
    assert rows is not None and split.weights is not None and len(rows) < len(split)
    assert split.weights[rows].mean() == pytest.approx(1)
    logits = torch.randn(len(rows), 3, generator=torch.Generator().manual_seed(1))
    plain = F.cross_entropy(logits, torch.from_numpy(split.targets.take(rows)), reduction="none")
    losses = Objective.from_config(config.train, split, CPU, config.data.resample.by == "loss").losses(
        logits, batch_of(rows, split)
    )
    torch.testing.assert_close(losses, plain * torch.from_numpy(split.weights[rows]).float())


def test_regression_and_boosting_refuse_label_probabilities() -> None:
    with pytest.raises(
        ConfigError, match=r"train\.label_probabilities: needs task: multiclass; numbers have no classes"
    ):
        Config(task="regression", data=DataConfig(shards="x"), train=TrainConfig(label_probabilities={"a": "b"}))
    boosted = DataConfig(shards="x", resample=ResampleConfig(kind="boost"))
    with pytest.raises(ConfigError, match=r"label_probabilities_as: weights and boosting .* expected targets"):
        Config(data=boosted, train=TrainConfig(label_probabilities={"a": "b"}, label_probabilities_as="weights"))
