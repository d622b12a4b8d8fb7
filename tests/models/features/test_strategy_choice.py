"""What `auto` measures, and how it chooses a strategy."""

from __future__ import annotations

import numpy as np
import pytest

from choral.models.features.strategy_choice import LinearProbe, choose_strategy, measure_probe, select_probe_rows


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
def test_choice_by_samples_and_accuracy(per_class: float, accuracy: float, expected: str) -> None:
    assert choose_strategy(LinearProbe(per_class, 200, accuracy, 0.5))[0] == expected


@pytest.mark.parametrize(("accuracy", "similarity"), [(0.25, 0.0), (0.1, 0.0), (0.925, 1.0), (1.0, 1.0), (0.5875, 0.5)])
def test_similarity_is_relative_to_typical_fine_tuning(accuracy: float, similarity: float) -> None:
    """Four classes: chance is 0.25, fine-tuning typically reaches 0.25 + 0.9 * 0.75."""
    assert LinearProbe(10, 10, accuracy, 0.25).similarity == pytest.approx(similarity)


def test_probe_rows_are_stratified() -> None:
    labels = np.repeat([0, 1, 2], [600, 300, 100])[np.random.default_rng(0).permutation(1000)]
    rows = select_probe_rows(labels, 200, 7)
    assert len(rows) == 200 == len(set(rows.tolist())) and (np.diff(rows) > 0).all()
    counts = np.bincount(labels[rows])
    assert np.abs(counts - [120, 60, 20]).max() <= 1
    assert np.array_equal(rows, select_probe_rows(labels, 200, 7)) and not np.array_equal(
        rows, select_probe_rows(labels, 200, 8)
    )
    assert np.array_equal(select_probe_rows(labels, 1000, 7), np.arange(1000))


def test_similarity_of_noise_and_of_separating_features() -> None:
    """Balanced accuracy: chance is 0.5 although nine of ten samples belong to one class."""
    random = np.random.default_rng(0)
    labels = np.where(random.random(800) < 0.9, 0, 1)
    counts, rows = np.bincount(labels), np.arange(800)
    noise = random.normal(size=(800, 30)).astype(np.float32)
    uninformative = measure_probe(noise, labels, rows, counts, 0)
    assert uninformative.accuracy == pytest.approx(0.5, abs=0.07) and uninformative.similarity < 0.2
    assert uninformative.chance == 0.5 and uninformative.probed == 800
    assert uninformative.samples_per_class == 400.0
    informative = noise.copy()
    informative[:, 3] += 8 * labels
    assert measure_probe(informative, labels, rows, counts, 0).similarity > 0.9
