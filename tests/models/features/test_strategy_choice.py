"""What `auto` measures, and the table it follows."""

from __future__ import annotations

import numpy as np
import pytest

from choral.models.features.strategy_choice import Probe, choose, measure, probe_rows


@pytest.mark.parametrize(
    ("per_class", "accuracy", "expected"),
    [
        (5000, 0.99, "full"),
        (5000, 0.5, "full"),
        (1000, 0.7, "full"),
        (300, 0.94, "linear"),
        (30, 0.94, "linear"),
        (300, 0.7, "lp_ft"),
        (100, 0.7, "lp_ft"),
        (99, 0.7, "partial"),
    ],
)
def test_the_table(per_class: float, accuracy: float, expected: str) -> None:
    assert choose(Probe(per_class, 200, accuracy, 0.5))[0] == expected


@pytest.mark.parametrize(("accuracy", "similarity"), [(0.25, 0.0), (0.1, 0.0), (0.925, 1.0), (1.0, 1.0), (0.5875, 0.5)])
def test_similarity_is_the_share_of_what_fine_tuning_reaches(accuracy: float, similarity: float) -> None:
    """Of four classes, guessing has 0.25 and fine-tuning typically 0.25 + 0.9 * 0.75."""
    assert Probe(10, 10, accuracy, 0.25).similarity == pytest.approx(similarity)


def test_probe_rows_hold_each_class_its_share() -> None:
    labels = np.repeat([0, 1, 2], [600, 300, 100])[np.random.default_rng(0).permutation(1000)]
    rows = probe_rows(labels, 200, 7)
    assert len(rows) == 200 == len(set(rows.tolist())) and (np.diff(rows) > 0).all()
    counts = np.bincount(labels[rows])
    assert np.abs(counts - [120, 60, 20]).max() <= 1
    assert np.array_equal(rows, probe_rows(labels, 200, 7)) and not np.array_equal(rows, probe_rows(labels, 200, 8))
    assert np.array_equal(probe_rows(labels, 1000, 7), np.arange(1000))


def test_features_that_say_nothing_are_near_chance_and_good_ones_near_1() -> None:
    """Chance by balanced accuracy: nine of ten samples are of one class."""
    random = np.random.default_rng(0)
    labels = np.where(random.random(800) < 0.9, 0, 1)
    counts, rows = np.bincount(labels), np.arange(800)
    noise = random.normal(size=(800, 30)).astype(np.float32)
    nothing = measure(noise, labels, rows, counts, 0)
    assert nothing.accuracy == pytest.approx(0.5, abs=0.07) and nothing.similarity < 0.2
    assert nothing.chance == 0.5 and nothing.probed == 800
    assert nothing.samples_per_class == 400.0
    telling = noise.copy()
    telling[:, 3] += 8 * labels
    assert measure(telling, labels, rows, counts, 0).similarity > 0.9
