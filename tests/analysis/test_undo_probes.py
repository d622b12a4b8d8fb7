"""Variations of validation images are found by undoing them, on made-up confidence and correctness."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from choral.analysis.undo_probes import ChangedImages, compute_correctness, compute_log_odds, select_families, sign_test

N = 400
KEYS = [f"k{number:04d}" for number in range(N)]
Floats = NDArray[np.float64]


def versions(rng: np.random.Generator, right: float, sure: float, chosen: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """Return (N,) sureness and rightness: of those chosen as given, of the others a coin and little sureness."""
    hit = np.where(chosen, rng.random(N) < right, rng.random(N) < 0.4).astype(np.float64)
    return np.where(chosen, sure, 0.5) + rng.normal(0, 0.4, N), hit


def offered(rng: np.random.Generator, *at: tuple[float, float, float, NDArray[np.bool_]]) -> ChangedImages:
    """Return the versions at strengths: (strength, right, sure, chosen) each."""
    made = [versions(rng, *rest) for _, *rest in at]
    return ChangedImages(
        np.array([one[0] for one in at]), np.stack([a for a, _ in made]), np.stack([b for _, b in made])
    )


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(3)


def test_what_half_of_the_images_show_is_found_with_its_strength(rng: np.random.Generator) -> None:
    dark = np.arange(N) % 2 == 0
    sure, right = versions(rng, 0.97, 4.0, ~dark)
    lit = offered(rng, (0.25, 0.5, 1.0, dark), (0.5, 0.97, 4.0, dark), (1.0, 0.2, 0.2, dark))
    turned = offered(rng, (10.0, 0.4, 0.5, dark), (20.0, 0.4, 0.5, dark))
    taken, alone = select_families(sure, right, {"turned": turned, "lit": lit}, KEYS)
    assert [one.family for one in taken] == ["lit"]
    assert taken[0].strength == 0.5
    assert abs(taken[0].difference.sum() - (0.97 - 0.4) * dark.sum()) < 20
    assert not alone["turned"].helps and alone["turned"].p_adjusted >= alone["turned"].p


def test_where_training_covers_validation_nothing_is_found(rng: np.random.Generator) -> None:
    everything = np.ones(N, np.bool_)
    sure, right = versions(rng, 0.95, 4.0, everything)
    families = {f"f{number}": offered(rng, (1.0, 0.5, 3.0, everything)) for number in range(8)}
    taken, alone = select_families(sure, right, families, KEYS)
    assert not taken and not any(one.helps for one in alone.values())


def test_a_change_that_alters_labels_is_not_found(rng: np.random.Generator) -> None:
    everything = np.ones(N, np.bool_)
    sure, right = versions(rng, 0.9, 2.0, everything)
    turned = offered(rng, (180.0, 0.1, 4.0, everything))  # surer, and wrong: a 6 has become a 9
    taken, alone = select_families(sure, right, {"turned": turned}, KEYS)
    assert not taken and alone["turned"].strength == 0


def test_errors_corrected_by_one_family_do_not_count_again(rng: np.random.Generator) -> None:
    dark = np.arange(N) % 2 == 0
    sure, right = versions(rng, 0.97, 4.0, ~dark)
    lit, contrast = offered(rng, (0.5, 0.97, 4.0, dark)), offered(rng, (0.5, 0.75, 3.0, dark))
    taken, alone = select_families(sure, right, {"contrast": contrast, "lit": lit}, KEYS)
    assert alone["contrast"].helps
    assert [one.family for one in taken] == ["lit"]


def test_two_families_that_different_images_show_are_both_found(rng: np.random.Generator) -> None:
    kind = np.arange(N) % 3
    sure, right = versions(rng, 0.97, 4.0, kind == 0)
    families = {"lit": offered(rng, (0.5, 0.97, 4.0, kind == 1)), "turned": offered(rng, (20.0, 0.75, 3.0, kind == 2))}
    taken, _ = select_families(sure, right, families, KEYS)
    assert [one.family for one in taken] == ["lit", "turned"]


def test_false_alarms_are_rare() -> None:
    """Surest of versions that are as good as the image itself: nothing is to be found, in 50 data sets of 6 families."""
    alarms = 0
    everything = np.ones(N, np.bool_)
    for seed in range(50):
        rng = np.random.default_rng(seed)
        sure, right = versions(rng, 0.8, 2.0, everything)
        families = {f"f{number}": offered(rng, (1.0, 0.8, 2.0, everything)) for number in range(6)}
        alarms += bool(select_families(sure, right, families, KEYS)[0])
    assert alarms <= 5


def test_sureness_and_rightness_of_each_task() -> None:
    said = np.array([[0.9, 0.1], [0.5, 0.5]], np.float32)
    assert compute_log_odds("multiclass", said) == pytest.approx([np.log(9), 0], abs=1e-6)
    assert compute_log_odds("multilabel", said) == pytest.approx([np.log(9), 0], abs=1e-6)
    assert compute_correctness("multiclass", np.array([0, 1]), said).tolist() == [1, 0]
    assert compute_correctness("multilabel", np.array([[1, 1], [0, 0]]), said).tolist() == [0.5, 1]


def test_the_sign_test_is_exact() -> None:
    assert sign_test(np.array([1.0] * 8 + [-1.0, 0, 0])) == pytest.approx(2 * 10 / 2**9)
    assert sign_test(np.zeros(3)) == 1
