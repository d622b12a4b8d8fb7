"""Predictors by name: the predictions behind one row of `choral score`, for every sample of a split."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from choral.config import Config
from choral.core.errors import ConfigError, DataError, did_you_mean
from choral.ensembles.fitting_data import FittingData, available_rules, fit_rule, load_fitting_data
from choral.ensembles.learned_views import learn_views, predictions_with_learned_views, reason_not_learnable
from choral.ensembles.member_predictions import LEARNED, MemberPredictions
from choral.ensembles.rules import Combiner, mean_rule_name
from choral.ensembles.score_rows import scored_views
from choral.inference.ledger import Ledger
from choral.metrics.metric_report import Metrics, build_metrics
from choral.metrics.per_sample import top_class
from choral.runs.run_dir import RunDir, read_json
from choral.scoring.policy import policy_path, read_policy, reason_policy_not_applicable, select_policy_inputs

COMBINED = "combined/"
ANSWER = "answer"
"""The predictor that answer.json defines."""


@dataclass(frozen=True)
class Predictor:
    """A member, or a rule that combines members, with its predictions.

    Attributes:
        name: of its row: member/first, member/first+tta, soft, weighted+tta, combined/NAME and so on.
        ledger: of the run, with sorted keys, labels and metadata; also for combinations.
        predictions: (N, classes) float32 in the ledger's order; shares of votes for a hard vote.
        gives_probabilities: whether the predictions are probabilities, so that they have a log loss; not for a hard vote and
            regression.
        decided: (N,) classes or (N, labels) labels, decided with thresholds or costs; None: the most probable class, or
            labels above one half.
    """

    name: str
    ledger: Ledger
    predictions: NDArray[np.float32]
    gives_probabilities: bool
    decided: NDArray[Any] | None = None

    @property
    def decisions(self) -> NDArray[Any]:
        """The decisions: (N,) classes, (N, labels) bool, or (N, targets) numbers."""
        task = self.ledger.meta.task
        if self.decided is not None:
            return self.decided > 0 if task == "multilabel" else self.decided
        if task == "multiclass":
            return top_class(self.predictions)
        return self.predictions > 0.5 if task == "multilabel" else self.predictions

    def build_metrics(self, mask: NDArray[np.bool_] | None = None) -> Metrics:
        """Return the metrics of all samples, or of those in an (N,) mask."""
        labels, predictions, decided = self.ledger.labels, self.predictions, self.decided
        if mask is not None:
            labels, predictions = labels[mask], predictions[mask]
            decided = None if decided is None else decided[mask]
        return build_metrics(
            self.ledger.meta.task, labels, predictions, has_probabilities=self.gives_probabilities, decisions=decided
        )


def load_predictor(folder: RunDir, config: Config, split: str, name: str = "") -> Predictor:
    """Return a predictor of a split; rules are fitted on the data that `choral score` uses, never on the split.

    Args:
        folder, config: of the run.
        split: an evaluated split.
        name: one of `list_predictors`; "": the calibrated predictor where there is one, else `default_predictor_name`.

    Raises:
        ConfigError: no such predictor; the nearest name is given.
        DataError: the split has not been evaluated, a ledger is damaged or empty, or a combination was made of other
            predictions.
    """
    ledger = open_evaluated_ledger(folder, config, split)
    if not len(ledger):
        raise DataError(f"{ledger.path}: has no samples, so there is nothing to score")
    fitting_data = load_fitting_data(folder, config, ledger)
    names = _list_names(folder, ledger, fitting_data)
    if not name:
        name = ANSWER if ANSWER in names else _choose_default_name(ledger, names)
    if name == ANSWER:
        return _load_calibrated(folder, ledger)
    if name not in names:
        raise ConfigError(f"no predictor '{name}'.{did_you_mean(name, names)} There are: {', '.join(names)}")
    if name.startswith(COMBINED):
        return _load_combination(folder, ledger, name)
    for view, suffix in scored_views(ledger):
        inputs = MemberPredictions(ledger, ledger.members, (view,))
        for member in ledger.members:
            if name == f"member/{member}{suffix}":
                return Predictor(name, ledger, ledger.predictions(member, view), inputs.task != "regression")
        for rule in available_rules(inputs, fitting_data):
            if name == f"{rule}{suffix}":
                return _apply_rule(name, inputs, fit_rule(rule, inputs, fitting_data).combiner)
    if name == _learned_views_name(ledger):
        inputs = predictions_with_learned_views(
            ledger, ledger.members, learn_views(ledger, ledger.members, fitting_data)
        )
        return _apply_rule(name, inputs, Combiner(mean_rule_name(ledger.meta.task), ledger.meta.task))
    raise AssertionError(f"{name} is listed, but no case handles it")


def list_predictors(folder: RunDir, config: Config, split: str) -> list[str]:
    """Return the names of all predictors of an evaluated split, in the order of the score table, then combinations.

    Raises:
        DataError: the split has not been evaluated, or a ledger is damaged.
    """
    ledger = open_evaluated_ledger(folder, config, split)
    return _list_names(folder, ledger, load_fitting_data(folder, config, ledger))


def default_predictor_name(folder: RunDir, config: Config, split: str) -> str:
    """Return the name of the soft vote (regression: the mean) of several members, or of the single member.

    It averages all views where the ledger has their mean.

    Raises:
        DataError: the split has not been evaluated, or a ledger is damaged.
    """
    ledger = open_evaluated_ledger(folder, config, split)
    return _choose_default_name(ledger, _list_names(folder, ledger, load_fitting_data(folder, config, ledger)))


def open_evaluated_ledger(folder: RunDir, config: Config, split: str | None) -> Ledger:
    """Return the ledger of an evaluated split; None: `resolve_default_split`.

    Raises:
        DataError: the split has not been evaluated.
    """
    name = split or resolve_default_split(folder, config)
    path = folder.predictions / f"{name}.parquet"
    if not path.is_file():
        found = ", ".join(sorted(file.stem for file in folder.predictions.glob("*.parquet"))) or "none"
        raise DataError(
            f"{folder.path}: split '{name}' has not been evaluated (evaluated: {found}); run `choral evaluate {folder.name}`"
        )
    return Ledger.open(path)


def resolve_default_split(folder: RunDir, config: Config) -> str:
    """Return the split that is scored by default: test if it has been evaluated, else the last of evaluate.splits."""
    return "test" if (folder.predictions / "test.parquet").is_file() else config.evaluate.splits[-1]


def _list_names(folder: RunDir, ledger: Ledger, fitting_data: FittingData) -> list[str]:
    names = []
    for view, suffix in scored_views(ledger):
        inputs = MemberPredictions(ledger, ledger.members, (view,))
        names += [f"member/{member}{suffix}" for member in ledger.members]
        names += [f"{rule}{suffix}" for rule in available_rules(inputs, fitting_data)]
    if not reason_not_learnable(ledger, fitting_data):
        names.append(_learned_views_name(ledger))
    names += sorted(_list_combinations(folder, ledger.meta.split))
    policy = read_policy(folder)
    return [*names, ANSWER] if policy is not None and not reason_policy_not_applicable(policy, ledger) else names


def _learned_views_name(ledger: Ledger) -> str:
    return f"{mean_rule_name(ledger.meta.task)}+{LEARNED}"


def _list_combinations(folder: RunDir, split: str) -> Iterator[str]:
    for path in (folder.path / "combined").glob(f"*/{split}.parquet"):
        yield f"{COMBINED}{path.parent.name}"


def _choose_default_name(ledger: Ledger, names: Sequence[str]) -> str:
    first = f"member/{ledger.members[0]}" if len(ledger.members) == 1 else mean_rule_name(ledger.meta.task)
    return next(one for one in (f"{first}+tta", first, names[0]) if one in names)


def _load_calibrated(folder: RunDir, ledger: Ledger) -> Predictor:
    """Return the predictor that `choral calibrate` wrote."""
    policy = read_policy(folder)
    if policy is None:
        raise ConfigError(
            f"no predictor '{ANSWER}': {folder.path} is not calibrated; run `choral calibrate {folder.name}`"
        )
    if reason := reason_policy_not_applicable(policy, ledger):
        raise DataError(f"{policy_path(folder)}: {reason}")
    inputs = select_policy_inputs(policy, ledger)
    predictions = np.concatenate([policy.combine(stack) for _, stack in inputs.blocks()])
    chosen = policy.decision.kind == "costs" or policy.decision.thresholds
    decided = policy.decide(predictions) if chosen else None
    return Predictor(ANSWER, ledger, predictions, policy.gives_probabilities, decided)


def _apply_rule(name: str, inputs: MemberPredictions, rule: Combiner) -> Predictor:
    predictions = np.concatenate([rule(stack).predictions for _, stack in inputs.blocks()])
    return Predictor(name, inputs.ledger, predictions, rule.gives_probabilities)


def _load_combination(folder: RunDir, ledger: Ledger, name: str) -> Predictor:
    """Return a stored combination, if it was made of the current predictions of the run."""
    path = folder.path / name
    combined = Ledger.open(path / f"{ledger.meta.split}.parquet")
    same = (combined.meta.dataset, combined.meta.evaluation) == (ledger.meta.dataset, ledger.meta.evaluation)
    if not same or combined.keys != ledger.keys:
        raise DataError(
            f"{combined.path}: was made of other predictions than those in {ledger.path}; run `choral combine` again"
        )
    rule = (read_json(path / "rule.json") or {}).get("fit", {}).get("rule", "")
    predictions = combined.predictions(combined.members[0], combined.views[0])
    return Predictor(name, ledger, predictions, ledger.meta.task != "regression" and rule != "hard")
