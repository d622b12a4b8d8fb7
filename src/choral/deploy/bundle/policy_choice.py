"""The policy of a bundle: that of the calibrated run, or one requested on the command line and fitted on validation data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from choral.config import Config
from choral.core.errors import ConfigError, DataError, did_you_mean
from choral.ensembles import saved_combination as combination
from choral.ensembles.fitting_data import load_fitting_data
from choral.ensembles.rules import mean_rule_name
from choral.inference.evaluation_plan import compute_evaluation_hash
from choral.inference.ledger import Ledger
from choral.inference.trained_model import TrainedModel
from choral.inference.views import expand_views
from choral.runs.run_dir import RunDir
from choral.scoring.apply_policy import build_default_policy
from choral.scoring.calibrate import CalibrationRequest, fit_policy
from choral.scoring.calibration_maps import MIN_SAMPLES
from choral.scoring.policy import PredictionPolicy, check_policy, policy_path, read_policy
from choral.scoring.predictor import Predictor
from choral.scoring.scored_predictor import ScoredPredictor


@dataclass(frozen=True)
class PolicyRequest:
    """The policy that a user requests for a bundle; the defaults mean the policy of the run.

    Attributes:
        rule: combines members; "": soft, or mean for regression.
        members: a subset of the members; empty: all.
        views: averaged, in the notation of `evaluate.views`; "": those of the evaluation.
        calibrated: whether probabilities are calibrated on the validation split.
    """

    rule: str = ""
    members: tuple[str, ...] = ()
    views: str = ""
    calibrated: bool = True

    @property
    def is_custom(self) -> bool:
        """Whether a rule, members or views were requested."""
        return bool(self.rule or self.members or self.views)


def choose_policy(
    folder: RunDir, config: Config, models: Sequence[TrainedModel], request: PolicyRequest
) -> tuple[PredictionPolicy, str]:
    """Return the policy of a bundle, and a phrase about its origin.

    It is what `choral calibrate` wrote to answer.json if nothing else is requested. Otherwise rule, temperature and conformal
    sets of 90 % are fitted on the validation ledger, as `choral combine` and `choral calibrate` do, without the test split.

    Raises:
        ConfigError: no such member, rule or view, or nothing to fit a rule on.
        DataError: answer.json or a ledger is damaged, or belongs to other weights.
    """
    evaluation = compute_evaluation_hash(models, config.train.precision)
    if request.calibrated and not request.is_custom and (kept := read_policy(folder)) is not None:
        check_policy(folder, kept, evaluation)
        return kept, f"from {policy_path(folder)}"
    path = folder.predictions / f"{config.data.val_split}.parquet"
    if not path.is_file():
        reason = f"'{config.data.val_split}' is not evaluated (`choral evaluate {folder.name}`)"
        return _build_unfitted_policy(config, models, request, evaluation, reason), f"not calibrated: {reason}"
    ledger = Ledger.open(path)
    if ledger.meta.evaluation != evaluation:
        raise DataError(
            f"{path}: belongs to other weights than those of the run; run `choral evaluate {folder.name}` again"
        )
    scored_predictor = _build_scored_predictor(folder, config, ledger, request)
    if request.calibrated and len(ledger) < MIN_SAMPLES and ledger.meta.task != "regression":
        reason = f"'{ledger.meta.split}' has {len(ledger)} samples, and {MIN_SAMPLES} are needed at least"
        return _build_uncalibrated_policy(scored_predictor, evaluation), f"not calibrated: {reason}"
    if not request.calibrated or not (
        ledger.meta.task == "regression" or scored_predictor.predictor.gives_probabilities
    ):
        reason = (
            "as requested"
            if not request.calibrated
            else f"{scored_predictor.rule.rule} gives shares of votes, no probabilities"
        )
        return _build_uncalibrated_policy(scored_predictor, evaluation), f"not calibrated: {reason}"
    policy, _ = fit_policy(scored_predictor, CalibrationRequest())
    return policy, f"calibrated on '{ledger.meta.split}' as `choral calibrate` does; {folder.path} is as it was"


def _build_scored_predictor(folder: RunDir, config: Config, ledger: Ledger, request: PolicyRequest) -> ScoredPredictor:
    """Return the requested combination, fitted on the validation ledger."""
    fitting_data = replace(load_fitting_data(folder, config, ledger), validation=ledger)
    rule = request.rule or mean_rule_name(ledger.meta.task)
    requested = combination.CombinationRequest(
        rule, request.members, _select_view_columns(ledger, request.views), temperature="none"
    )
    member_predictions, fit = combination.fit_combination(requested, ledger, fitting_data)
    found = fit.combiner
    combined = np.concatenate([found(stack).predictions for _, stack in member_predictions.blocks()])
    name = f"{found.rule}{'+tta' if member_predictions.views != ('identity',) else ''}"
    predictor = Predictor(name, ledger, combined, found.gives_probabilities)
    return ScoredPredictor(
        predictor,
        fitting_data,
        member_predictions.ledger_members,
        member_predictions.views,
        found,
        member_predictions.view_weights,
    )


def _select_view_columns(ledger: Ledger, views: str) -> tuple[str, ...]:
    """Return the columns of a ledger that are the mean over some views; none: the usual one.

    Raises:
        ConfigError: they were not evaluated.
    """
    if not views:
        return ()
    if views == "learned":
        return ("learned",)
    names = expand_views(views)
    if set(names) == set(ledger.meta.tta_views):
        return ("tta",)
    missing = [name for name in names if name not in ledger.views]
    if missing:
        raise ConfigError(
            f"--views {views}: {ledger.path} holds nothing under {', '.join(missing)}, so that nothing could be fitted or "
            f"scored: evaluate with --views {views} first"
        )
    return names


def _build_uncalibrated_policy(scored_predictor: ScoredPredictor, evaluation: str) -> PredictionPolicy:
    meta = scored_predictor.predictor.ledger.meta
    plain = build_default_policy(
        meta.task, meta.classes, scored_predictor.members, ("identity",), scored_predictor.average
    )
    return replace(
        plain,
        of=scored_predictor.predictor.name,
        views=scored_predictor.views,
        rule=scored_predictor.rule,
        evaluation=evaluation,
    )


def _build_unfitted_policy(
    config: Config, models: Sequence[TrainedModel], request: PolicyRequest, evaluation: str, reason: str
) -> PredictionPolicy:
    """Return a policy without fitted parameters; it needs no ledger."""
    outputs, names = models[0].outputs, [model.name for model in models]
    for name in request.members:
        if name not in names:
            raise ConfigError(
                f"--members: no member '{name}'.{did_you_mean(name, names)} There are: {', '.join(names)}"
            )
    rules = ("mean", "median") if outputs.task == "regression" else ("soft", "hard", "geometric")
    if outputs.task == "multilabel":
        rules = ("soft", "geometric")
    rule = request.rule or rules[0]
    if rule not in rules:
        raise ConfigError(f"--rule {rule}: has to be fitted, and {reason}; without that there are {', '.join(rules)}")
    members = [name for name in names if name in (request.members or names)]
    views = expand_views(request.views or config.test_views)
    plain = build_default_policy(outputs.task, outputs.names, members, views, config.evaluate.average)
    return replace(plain, of=rule, rule=replace(plain.rule, rule=rule), evaluation=evaluation)
