"""Perturbed images that resemble their class, and others that do not."""

from __future__ import annotations

import numpy as np
import pytest

from choral.analysis.resemblance import compute_resemblance


def digits(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features of two classes, far apart."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    features = rng.normal(0, 1, (count, 16)).astype(np.float32)
    features[:, 0] += 20 * labels
    return features, labels


def test_other_draws_of_the_same_class_cannot_be_told_apart() -> None:
    features, labels = digits(400)
    others, _ = digits(400, seed=1)
    assert compute_resemblance(features, others, labels) > 0.9
    assert compute_resemblance(features, features, labels) == 1.0  # what changes nothing


def test_what_moves_all_images_is_told_apart() -> None:
    features, labels = digits(400)
    moved = digits(400, seed=1)[0] + np.eye(16, dtype=np.float32)[3] * 30
    assert compute_resemblance(features, moved, labels) == 0.0
    a_little = digits(400, seed=1)[0] + np.eye(16, dtype=np.float32)[3] * 2.5
    assert 0.1 < compute_resemblance(features, a_little, labels) < 0.8


def test_a_change_into_another_class_is_told_apart_though_all_images_together_look_the_same() -> None:
    features, labels = digits(400)
    turned = digits(400, seed=1)[0].copy()
    turned[:, 0] += 20 * (1 - 2 * labels)  # each class becomes the other
    assert compute_resemblance(features, turned, labels) == 0.0
    assert compute_resemblance(features, turned, np.zeros(400, np.int64)) > 0.9


@pytest.mark.parametrize("labels", [[0, 1], []])
def test_classes_of_one_image_say_nothing(labels: list[int]) -> None:
    features = np.ones((len(labels), 3), np.float32)
    assert compute_resemblance(features, features, np.array(labels, np.int64)) == 0.0
