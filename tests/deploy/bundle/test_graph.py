"""An ensemble as a network says what the engine says, and the engine what the ledger of an evaluation says."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from choral.deploy.bundle.combine_module import CombinationModule
from choral.deploy.bundle.graph import EnsembleGraph, TorchEngine
from choral.ensembles.rules import Combiner
from choral.metrics.per_sample import top_class
from choral.scoring.calibration_maps import METHODS, CalibrationMap, fit_calibration_map
from choral.scoring.policy import PredictionPolicy
from made_ensembles import batch, members, plain

COMBINERS = {
    "soft": Combiner("soft", "multiclass", temperature=1.7),
    "hard": Combiner("hard", "multiclass"),
    "geometric": Combiner("geometric", "multiclass"),
    "weighted": Combiner("weighted", "multiclass", (0.5, 0.2, 0.3), temperature=0.6),
    "greedy": Combiner("greedy", "multiclass", (0.75, 0.0, 0.25)),
    "stack": Combiner("stack", "multiclass", (0.8, -0.1), (0.1, 0.0, -0.3), ((0, 2), (1,))),
    "boosting": Combiner("boosting", "multiclass", (1.0, 0.5, 0.5)),
    "boosting, tempered": Combiner("boosting", "multiclass", (1.0, 0.5, 0.5), temperature=2.5),
}


def stacks(count: int = 400) -> NDArray[np.float32]:
    """What three members say of three classes, in quarters, so that votes, means and classes are often tied."""
    rng = np.random.default_rng(0)
    quarters = rng.multinomial(4, np.ones(3) / 3, size=(3, count)) / 4
    smooth = rng.dirichlet(np.ones(3) / 2, size=(3, count))
    return np.where(rng.random((1, count, 1)) < 0.5, quarters, smooth).astype(np.float32)


def equal(policy: PredictionPolicy, stack: NDArray[np.float32]) -> None:
    """Check that the module says what the answering says, and means the same decisions."""
    expected = policy.combine(stack)
    module = CombinationModule(policy)
    found = module(torch.from_numpy(stack)).numpy()
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-6, rtol=0)
    if policy.task == "multiclass":
        top = np.sort(expected, axis=1)
        clear = (top[:, -1] - top[:, -2] > 1e-6) | (policy.rule.rule in ("hard", "boosting"))
        assert clear.mean() > 0.5
        np.testing.assert_array_equal(top_class(found)[clear], top_class(expected)[clear])


@pytest.mark.parametrize("rule", COMBINERS)
def test_rules(rule: str) -> None:
    stack, combiner = stacks(), COMBINERS[rule]
    if combiner.rule in ("hard", "boosting"):
        tied = combiner(stack).tied
        assert tied is not None and tied.any()
    equal(replace(plain(), rule=combiner), stack)


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
@pytest.mark.parametrize("method", METHODS)
def test_calibration_maps(method: str, task: str) -> None:
    stack = stacks()
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 3, 400) if task == "multiclass" else rng.integers(0, 2, (400, 3))
    said = stack.mean(axis=0)
    fitted = fit_calibration_map(method, task, labels, said)
    if method == "isotonic":  # classes with different numbers of knots, one with a single one
        lone = ((0.4,), (0.3,))
        fitted = replace(fitted, knots=(*fitted.knots[:2], lone))
        assert len({len(before) for before, _ in fitted.knots}) == 3
    equal(replace(plain(task), calibration=fitted), stack)


@pytest.mark.parametrize(
    "rule",
    [
        Combiner("geometric", "multilabel", temperature=1.3),
        Combiner("stack", "multilabel", (0.8, 0.3), (0.1, 0.0, -0.3), ((0, 1), (2,))),
        Combiner("median", "regression"),
        Combiner("mean", "regression"),
        Combiner("weighted", "regression", (0.5, 0.2, 0.3)),
    ],
    ids=lambda rule: f"{rule.task} {rule.rule}",
)
def test_labels_and_numbers(rule: Combiner) -> None:
    stack = stacks()
    policy = replace(plain(rule.task), rule=rule, calibration=CalibrationMap("none", rule.task))
    equal(policy, stack)
    equal(policy, stack[:2] if rule.rule == "median" else stack)  # the mean of the two in the middle


@pytest.mark.parametrize(
    ("kind", "average"),
    [
        ("regression", "probabilities"),
        *product(["multiclass", "against all", "multilabel"], ["probabilities", "geometric", "logits"]),
    ],
)
def test_graph_and_engine_agree(kind: str, average: str) -> None:
    task = "multiclass" if kind == "against all" else kind
    own = members(task, against_all=kind == "against all")
    policy = plain(task, ("identity", "rot90", "scale[0.9]", "contrast[1.2]"), average=average)
    images = batch(own, 5)
    engine = TorchEngine(own, policy, "cpu")
    said = engine.predict_batch(images)
    assert said.by_member.shape == (3, 5, 3) and said.combined.shape == (5, 3)
    with torch.inference_mode():
        combined, by_member = EnsembleGraph(own, policy)(*map(torch.from_numpy, images))
    np.testing.assert_allclose(combined.numpy(), said.combined, atol=5e-6)
    np.testing.assert_allclose(by_member.transpose(0, 1).numpy(), said.by_member, atol=5e-6)
    if kind == "regression":
        assert np.abs(said.by_member[..., 0]).mean() > 5  # in the unit of the targets


def test_views_of_different_weights() -> None:
    own = members()
    even = plain(views=("identity", "hflip", "rot90"))
    policy = replace(even, views={"identity": 0.5, "hflip": 0.125, "rot90": 0.375})
    images = batch(own, 4)
    said = TorchEngine(own, policy, "cpu").predict_batch(images)
    each = np.stack(
        [
            TorchEngine(own, replace(even, views={view: 1.0}), "cpu").predict_batch(images).by_member
            for view in even.views
        ],
        axis=1,
    )
    np.testing.assert_allclose(said.by_member, policy.average_views(each), atol=1e-6)
    np.testing.assert_array_equal(said.combined, policy.combine(said.by_member))
    with torch.inference_mode():
        combined, _ = EnsembleGraph(own, policy)(*map(torch.from_numpy, images))
    np.testing.assert_allclose(combined.numpy(), said.combined, atol=1e-6)


def test_members_in_half_precision_are_copies() -> None:
    own, policy = members(), plain()
    images = batch(own, 3)
    with torch.inference_mode():
        half, _ = EnsembleGraph(own, policy, half=True)(*map(torch.from_numpy, images))
        single, _ = EnsembleGraph(own, policy)(*map(torch.from_numpy, images))
    assert half.dtype == torch.float32 and {value.dtype for value in own[0].network.parameters()} == {torch.float32}
    assert 0 < (half - single).abs().max() < 1e-2


def test_other_members_than_are_heard() -> None:
    own = members()
    for wrong in (own[:2], own[::-1]):
        with pytest.raises(ValueError, match="expected a, b, c"):
            TorchEngine(wrong, plain(), "cpu")
        with pytest.raises(ValueError, match="expected a, b, c"):
            EnsembleGraph(wrong, plain())
