"""Fitted rules against SciPy, scikit-learn and loops in Python."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from scipy.optimize import minimize, minimize_scalar
from scipy.special import expit, logit, logsumexp
from sklearn.linear_model import LogisticRegression

from choral.ensembles.member_weights import (
    DUALITY_GAP,
    CandidateClasses,
    greedy_accuracy,
    greedy_log_loss,
    greedy_squared_error,
    min_log_loss_weights,
    min_squared_error_weights,
)
from choral.ensembles.rules import (
    Combiner,
    apply_stacking,
    apply_temperature,
    boosted_vote,
    log_scores,
    soft_vote,
    vote_shares,
    weighted_mean,
)
from choral.ensembles.stacking import FOLDS, fit_stacking
from choral.ensembles.temperature import TemperatureFitter
from made_runs import predictions


def stack_of(count: int, members: int = 4, classes: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    names = [f"m{number}" for number in range(members)]
    labels, columns = predictions(count, names, seed, classes, ["identity"])
    return labels, np.stack([columns[name, "identity"] for name in names])


def true_probabilities(labels: np.ndarray, stack: np.ndarray) -> np.ndarray:
    return stack[:, np.arange(len(labels)), labels].T.astype(float)


def on_the_simplex(loss: object, members: int) -> np.ndarray:
    constraint = {"type": "eq", "fun": lambda weights: weights.sum() - 1}
    found = minimize(
        loss,
        np.full(members, 1 / members),
        method="SLSQP",
        bounds=[(0, 1)] * members,
        constraints=constraint,
        options={"ftol": 1e-15, "maxiter": 500},
    )
    return found.x


@pytest.mark.parametrize(("members", "seed"), [(2, 0), (4, 1), (7, 2)])
def test_convex_weights_of_least_log_loss(members: int, seed: int) -> None:
    truths = true_probabilities(*stack_of(400, members, seed=seed))
    found = min_log_loss_weights(truths)
    expected = on_the_simplex(lambda weights: -np.log(truths @ weights).mean(), members)
    assert found.values == pytest.approx(expected, abs=1e-4)
    assert found.loss <= -np.log(truths @ expected).mean() + 1e-9
    assert 0 <= found.gap <= DUALITY_GAP and found.values.min() >= 0 and found.values.sum() == pytest.approx(1)


def test_weights_of_equal_dominated_and_single_members() -> None:
    truths = true_probabilities(*stack_of(200, 1))
    assert min_log_loss_weights(truths).values.tolist() == [1.0]
    equal = min_log_loss_weights(np.repeat(truths, 3, axis=1))
    assert equal.loss == pytest.approx(-np.log(truths).mean()) and equal.gap <= DUALITY_GAP
    worse = min_log_loss_weights(np.concatenate([truths, truths / 2], axis=1))
    assert worse.values.tolist() == [1.0, 0.0]
    floor = np.full((3, 2), np.finfo(np.float32).eps, dtype=np.float32)  # every member gives the truth probability 0
    assert min_log_loss_weights(floor).values.sum() == pytest.approx(1)


def test_weights_do_not_depend_on_the_block_size(monkeypatch: pytest.MonkeyPatch) -> None:
    truths = true_probabilities(*stack_of(500))
    whole = min_log_loss_weights(truths).values, greedy_log_loss(truths, 20).values
    monkeypatch.setattr("choral.ensembles.member_weights._BLOCK_ROWS", 7)
    assert min_log_loss_weights(truths).values == pytest.approx(whole[0], abs=1e-6)
    assert greedy_log_loss(truths, 20).values.tolist() == whole[1].tolist()


@pytest.mark.parametrize("seed", [0, 1])
def test_convex_weights_of_least_squared_error(seed: int) -> None:
    rng = np.random.default_rng(seed)
    errors = rng.normal(size=(300, 5)) * (0.5, 0.6, 0.7, 3, 0.5) + rng.normal(size=(300, 1))
    gram = errors.T @ errors / 300
    expected = on_the_simplex(lambda weights: ((errors @ weights) ** 2).mean(), 5)
    found = min_squared_error_weights(gram)
    assert found.values == pytest.approx(expected, abs=1e-4)
    assert found.loss == pytest.approx(((errors @ expected) ** 2).mean(), rel=1e-8)
    assert found.gap <= 1e-9
    assert min_squared_error_weights(np.zeros((3, 3))).values.sum() == pytest.approx(1)  # no errors


def naive_greedy(members: int, picks: int, score: object) -> list[int]:
    """Return the members of the best intermediate ensemble, as in Caruana et al. 2004."""
    chosen: list[int] = []
    ensembles = []
    for _ in range(picks):
        chosen = min(([*chosen, member] for member in range(members)), key=score)
        ensembles.append(chosen)
    return min(ensembles, key=score)


@pytest.mark.parametrize("by", ["log_loss", "accuracy", "squared_error"])
@pytest.mark.parametrize("seed", range(4))
def test_greedy_selection_equals_a_naive_implementation(by: str, seed: int) -> None:
    labels, stack = stack_of(150, members=4, classes=5, seed=seed)
    truths, rows = true_probabilities(labels, stack), np.arange(150)

    def loss(chosen: list[int]) -> float:
        return float(-np.log(stack[chosen].astype(float).mean(0)[rows, labels]).mean())

    if by == "log_loss":
        found, score = greedy_log_loss(truths, 12), loss
    elif by == "accuracy":
        found = greedy_accuracy(CandidateClasses.from_stack(stack, labels), truths, 12)

        def score(chosen: list[int]) -> tuple[int, float]:
            return -int((stack[chosen].astype(float).sum(0).argmax(1) == labels).sum()), loss(chosen)
    else:
        errors = stack.astype(float)[:, :, 0] - labels
        found = greedy_squared_error(errors @ errors.T / 150, 12)

        def score(chosen: list[int]) -> float:
            return float((errors[chosen].mean(0) ** 2).mean())

    expected = naive_greedy(4, 12, score)
    assert found.values.tolist() == (np.bincount(expected, minlength=4) / len(expected)).tolist()


def test_greedy_selection_resolves_ties_by_the_first_and_the_fewest() -> None:
    labels, stack = stack_of(60, members=1)
    stack = np.repeat(stack, 3, axis=0)
    truths = true_probabilities(labels, stack)
    assert greedy_log_loss(truths, 5).values.tolist() == [1.0, 0.0, 0.0]
    assert greedy_accuracy(CandidateClasses.from_stack(stack, labels), truths, 5).values.tolist() == [1.0, 0.0, 0.0]


def test_candidate_classes_of_blocks_and_of_ties() -> None:
    labels, stack = stack_of(100, members=3, classes=6)
    whole = CandidateClasses.from_stack(stack, labels)
    parts = CandidateClasses.concatenate(
        [CandidateClasses.from_stack(stack[:, a:b], labels[a:b]) for a, b in pairwise((0, 33, 40, 100))]
    )
    np.testing.assert_array_equal(whole.values, parts.values)
    np.testing.assert_array_equal(whole.starts, parts.starts)
    assert len(whole.values) < stack[0].size  # some classes are no candidates
    for weights in np.random.default_rng(0).dirichlet(np.ones(3), 20):
        expected = (weighted_mean(stack, weights).argmax(1) == labels).sum()
        assert whole.count_correct(whole.values @ weights) == expected
    equal = np.full((1, 2, 2), 0.5, np.float32)
    assert CandidateClasses.from_stack(equal, np.array([0, 1])).count_correct(np.full(4, 0.5)) == 1


def test_stacking_of_two_classes_is_logistic_regression_on_log_odds() -> None:
    labels, stack = stack_of(800, members=3, classes=2)
    features = np.stack([log_scores(values, "multiclass") for values in stack])
    folds = np.arange(800) % FOLDS
    found = fit_stacking(features, labels, folds, "multiclass", [1e-10])
    odds = (features[..., 1] - features[..., 0]).T.astype(float)
    expected = LogisticRegression(C=1e8, tol=1e-10, max_iter=1000).fit(odds, labels)
    assert found.weights == pytest.approx(expected.coef_[0], abs=0.01)
    assert found.biases[1] - found.biases[0] == pytest.approx(expected.intercept_[0], abs=0.01)
    combined = apply_stacking(stack, found.weights, found.biases, "multiclass")
    np.testing.assert_allclose(combined, expected.predict_proba(odds), atol=0.003)
    assert found.loss == pytest.approx(-np.log(true_probabilities(labels, combined[None])).mean(), abs=1e-5)


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
@pytest.mark.parametrize("strength", [1e-1, 1e-3])
def test_stacking_equals_numerical_minimisation(task: str, strength: float) -> None:
    labels, stack = stack_of(300, members=3, classes=4)
    truth = np.eye(4)[labels] if task == "multilabel" else labels
    features = np.stack([log_scores(values, task) for values in stack])

    def value(parameters: np.ndarray) -> float:
        scores = np.einsum("gnc,g->nc", features.astype(float), parameters[:3]) + parameters[3:]
        if task == "multilabel":
            loss = (np.logaddexp(0, scores) - truth * scores).mean()
        else:
            loss = (logsumexp(scores, axis=1) - scores[np.arange(300), labels]).mean()
        return float(loss + strength / 2 * (((parameters[:3] - 1 / 3) ** 2).sum() + (parameters[3:] ** 2).sum()))

    found = fit_stacking(features, truth, np.arange(300) % FOLDS, task, [strength])
    parameters = np.append(found.weights, found.biases)
    expected = minimize(value, np.append(np.full(3, 1 / 3), np.zeros(4)), tol=1e-12).x
    assert value(parameters) <= value(expected) + 1e-7
    assert parameters == pytest.approx(expected, abs=0.01)


def test_the_penalty_of_a_stack_is_chosen_by_cross_validation() -> None:
    labels, stack = stack_of(60, members=2, classes=6)
    labels = np.random.default_rng(0).permutation(labels)  # there is nothing to learn: the strongest wins
    features = np.stack([log_scores(values, "multiclass") for values in stack])
    folds = np.arange(60) % FOLDS
    assert fit_stacking(features, labels, folds, "multiclass").strength == 0.1
    losses = []
    for strength in (1e-1, 1e-5):
        loss = 0.0
        for fold in range(FOLDS):
            fit = fit_stacking(
                features[:, folds != fold], labels[folds != fold], folds[folds != fold], "multiclass", [strength]
            )
            combined = apply_stacking(stack[:, folds == fold], fit.weights, fit.biases, "multiclass")
            loss -= np.log(true_probabilities(labels[folds == fold], combined[None])).sum()
        losses.append(loss)
    assert losses[0] < losses[1]


def test_temperature_against_scipy() -> None:
    labels, stack = stack_of(500, members=3, classes=5)
    combined = soft_vote(stack)
    fitter = TemperatureFitter("multiclass", 500, 5)
    for start, end in pairwise((0, 77, 300, 500)):
        fitter.add(labels[start:end], combined[start:end])
    found = fitter.fit()
    logs = np.log(combined.astype(float))

    def loss(temperature: float) -> float:
        scores = logs / temperature
        return float((logsumexp(scores, axis=1) - scores[np.arange(500), labels]).mean())

    expected = minimize_scalar(loss, bounds=(0.05, 20), method="bounded", options={"xatol": 1e-10})
    assert found.value == pytest.approx(expected.x, rel=1e-4)
    assert (found.before, found.after) == pytest.approx((loss(1), expected.fun), rel=1e-6)
    with_temperature = apply_temperature(combined, found.value, "multiclass")
    np.testing.assert_allclose(
        with_temperature, np.exp(logs / found.value - logsumexp(logs / found.value, axis=1)[:, None]), rtol=1e-5
    )
    np.testing.assert_array_equal(with_temperature.argmax(1), combined.argmax(1))


def test_multilabel_temperature_against_scipy() -> None:
    rng = np.random.default_rng(0)
    labels = (rng.random((300, 4)) < 0.3).astype(np.float32)
    combined = expit(3 * rng.normal(size=(300, 4)) + 2 * labels - 1).astype(np.float32)
    fitter = TemperatureFitter("multilabel", 300, 4)
    fitter.add(labels, combined)
    found = fitter.fit()
    margins = np.where(labels > 0, 1, -1) * logit(combined.astype(float))
    expected = minimize_scalar(lambda t: np.logaddexp(0, -margins / t).mean(), bounds=(0.05, 20), method="bounded")
    assert found.value == pytest.approx(expected.x, rel=1e-3) and found.after == pytest.approx(expected.fun, rel=1e-6)
    np.testing.assert_allclose(
        apply_temperature(combined, 2.0, "multilabel"), expit(logit(combined.astype(float)) / 2), rtol=1e-5
    )


@pytest.mark.parametrize(("all_correct", "bound"), [(True, 0.05), (False, 20.0)])
def test_temperature_stays_within_its_bounds(all_correct: bool, bound: float) -> None:
    labels = np.zeros(10, np.int64)
    combined = np.tile(np.array([0.9, 0.1] if all_correct else [0.1, 0.9], np.float32), (10, 1))
    fitter = TemperatureFitter("multiclass", 10, 2)
    fitter.add(labels, combined)
    assert fitter.fit().value == pytest.approx(bound, rel=1e-4)


def test_boosted_votes_and_their_probabilities() -> None:
    """Zhu et al. 2009: argmax of the sum of alphas, and with two classes AdaBoost's own sigmoid."""
    _, stack = stack_of(200, members=4, classes=3)
    alphas = (1.5, 0.7, 0.6, 0.1)
    votes = np.zeros((200, 3))
    for values, alpha in zip(stack, alphas, strict=True):
        votes += alpha * np.eye(3)[values.argmax(1)]
    combined = boosted_vote(stack, alphas)
    np.testing.assert_array_equal(combined.predictions.argmax(1), votes.argmax(1))
    np.testing.assert_allclose(combined.predictions, np.exp(votes) / np.exp(votes).sum(1, keepdims=True), rtol=1e-5)
    two = np.array([[[0.9, 0.1]], [[0.8, 0.2]], [[0.3, 0.7]]], dtype=np.float32)
    assert boosted_vote(two, (1.0, 0.5, 2.5)).predictions[0, 1] == pytest.approx(expit(2.5 - 1.0 - 0.5))
    tied = boosted_vote(
        two, (0.1, 0.2, 0.1 + 0.2)
    )  # equal up to rounding: the mean probability decides, for the first class
    assert tied.tied is not None and tied.tied.tolist() == [True] and tied.predictions.argmax() == 0
    with_temperature = Combiner("boosting", "multiclass", alphas, temperature=3.0)(stack)
    np.testing.assert_array_equal(with_temperature.predictions.argmax(1), combined.predictions.argmax(1))


def test_vote_shares_give_the_winner_of_a_tie_the_highest_share() -> None:
    stack = np.array([[[0.6, 0.4]], [[0.1, 0.9]]], dtype=np.float32)
    combined = vote_shares(stack)
    assert combined.predictions.argmax() == 1 and combined.predictions == pytest.approx(
        np.array([[0.5, 0.5]]), abs=1e-6
    )
    assert combined.tied is not None and combined.tied.tolist() == [True]
