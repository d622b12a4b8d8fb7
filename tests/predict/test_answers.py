"""What a run answers for an image, by task, and what a person reads of it."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest

from choral.model.outputs import Outputs
from choral.predict.answers import ClassAnswer, LabelAnswer, NumberAnswer, answer, unreadable


def members(*rows: list[float]) -> dict[str, np.ndarray]:
    return {f"m{number}": np.array(row, np.float32) for number, row in enumerate(rows)}


def test_a_class_and_the_votes() -> None:
    given = answer("a.png", Outputs("multiclass", ("cat", "dog")), members([0.75, 0.25], [0.25, 0.75], [1, 0]))
    assert isinstance(given, ClassAnswer) and given.label == "cat" and given.probability == pytest.approx(2 / 3)
    assert given.cells() == ("cat", "0.667", "m0: cat 0.750, m1: dog 0.750, m2: cat 1.000")
    assert list(json.loads(json.dumps(asdict(given)))) == [
        *("image", "label", "probability", "probabilities", "votes", "error")
    ]


def test_labels_above_one_half_most_probable_first() -> None:
    outputs = Outputs("multilabel", ("sun", "rain", "fog"))
    given = answer("a.png", outputs, members([0.5, 0.75, 0.0], [0.75, 0.875, 0.5]))
    assert isinstance(given, LabelAnswer)
    assert given.labels == {"rain": 0.8125, "sun": 0.625} and list(given.labels) == ["rain", "sun"]
    assert given.probabilities == {"sun": 0.625, "rain": 0.8125, "fog": 0.25}
    assert given.cells() == ("rain 0.812, sun 0.625", "m0: rain; m1: sun, rain")
    assert answer("a.png", outputs, members([0, 0.5, 0])).cells() == ("none", "m0: none")


def test_numbers_with_the_spread_over_members() -> None:
    given = answer("a.png", Outputs("regression", ("kg", "m"), (0, 0), (1, 1)), members([1, -8], [3, -8]))
    assert isinstance(given, NumberAnswer)
    assert given.values == {"kg": 2, "m": -8} and given.spreads == {"kg": 1, "m": 0}
    assert given.cells() == ("kg 2 ± 1, m -8 ± 0", "m0: 1, -8; m1: 3, -8")


@pytest.mark.parametrize("task", ["multiclass", "multilabel", "regression"])
def test_an_image_that_cannot_be_read_has_an_error_alone(task: str) -> None:
    given = unreadable("a.png", Outputs(task, ("x",)), "no image")  # type: ignore[arg-type]
    assert (given.image, given.error) == ("a.png", "no image")
    assert not any(value for key, value in asdict(given).items() if key not in ("image", "error"))
    assert len(given.cells()) == len(given.headings)
