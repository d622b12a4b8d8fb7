"""Targets of each task, and errors for data sets that lack them."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from choral.config import Config, DataConfig
from choral.core.errors import ChoralError, ConfigError, DataError
from choral.data.loading.targets import Targets
from choral.data.packing.options import PackOptions
from choral.data.packing.pack import pack
from choral.data.shards.index import Dataset, Index
from toy_data import CLASSES, colour_image

ROWS = [  # label, brightness, weight, sunny, rainy, note
    ("rot", "0.5", "3", "1", "0", "a"),
    ("rot", "1.25", "4", "0", "0", "b"),
    ("blau", "-2", "5", "1", "1", "c"),
    ("blau", "inf", "6", "0", "1", "d"),
]


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    root = tmp_path_factory.mktemp("targets")
    lines = ["image,label,brightness,weight,sunny,rainy,note,gap"]
    for number, row in enumerate(ROWS):
        colour_image(next(iter(CLASSES.values())), number).save(root / f"{number}.png")
        lines.append(f"{number}.png,{','.join(row)},{'' if number == 2 else 1}")
    (root / "list.csv").write_text("\n".join(lines) + "\n")
    pack(str(root / "list.csv"), root / "packed", PackOptions(val=0, test=0, processes=1))
    return Index.open(Dataset.open(root / "packed"), "train")


def config(task: str, *targets: str) -> Config:
    return Config(task=task, data=DataConfig(shards="x", targets=targets))  # type: ignore[arg-type]


def rows_of(index: Index, *numbers: int) -> np.ndarray:
    paths = index.column("path").to_pylist()
    return np.array([paths.index(f"{number}.png") for number in numbers])


def test_classes(index: Index) -> None:
    targets = Targets.open(config("multiclass"), index)
    assert targets.names == ("blau", "rot")
    labels = targets.take(rows_of(index, 2, 0))
    assert labels.tolist() == [0, 1] and labels.dtype == np.int64


def test_regression_targets_and_labels_from_columns(index: Index) -> None:
    targets = Targets.open(config("regression", "weight", "rainy"), index)
    values = targets.take(rows_of(index, 2, 0, 2))
    assert values.tolist() == [[5, 1], [3, 0], [5, 1]] and values.dtype == np.float32
    assert pickle.loads(pickle.dumps(targets)).take(rows_of(index, 1)).tolist() == [[4, 0]]
    labels = Targets.open(config("multilabel", "sunny", "rainy"), index).take(rows_of(index, 0, 1, 2, 3))
    assert labels.tolist() == [[1, 0], [0, 0], [1, 1], [0, 1]] and labels.dtype == np.float32


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        (("regression", "brightness"), DataError, r"column 'brightness' of split train holds inf for sample '3-"),
        (("regression", "brightnes"), DataError, r"no column 'brightnes' .*Did you mean brightness\?"),
        (("regression", "note"), DataError, r"column 'note' of split train is string, expected numbers"),
        (("regression", "gap"), DataError, r"column 'gap' .* has no value for 1 samples, first '2-"),
        (("multilabel", "sunny", "weight"), DataError, r"'weight' .* holds \d+ for sample .*expected 0 or 1"),
        (("regression",), ConfigError, r"task: regression, but .* was packed for multiclass: pack .* data\.targets"),
        (
            ("multilabel",),
            ConfigError,
            r"pack the data with --task multilabel, or name columns of 0 and 1 in data\.targets",
        ),
    ],
)
def test_invalid_targets_are_refused(
    index: Index, arguments: tuple[str, ...], error: type[ChoralError], text: str
) -> None:
    with pytest.raises(error, match=text):
        Targets.open(config(*arguments), index)
