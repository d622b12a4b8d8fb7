"""How a bundle answers: as the run was calibrated, or as asked for, fitted on validation data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from choral.config import Config
from choral.core.errors import ConfigError, DataError, did_you_mean
from choral.ensembles import saved_combination as combination
from choral.ensembles.fitting_data import known_of
from choral.ensembles.rules import mean_rule
from choral.inference.evaluation_plan import evaluation_of
from choral.inference.ledger import Ledger
from choral.inference.trained_models import TrainedModel
from choral.inference.views import expand
from choral.runs.run_dir import RunDir
from choral.scoring.apply_policy import plain_answering
from choral.scoring.calibrate import Asked, fitted_answer
from choral.scoring.calibration_maps import FEWEST
from choral.scoring.policy import PredictionPolicy, answer_path, check_answer, read_answer
from choral.scoring.predictor import Predictor
from choral.scoring.scored_predictor import ScoredPredictor


@dataclass(frozen=True)
class Wanted:
    """What a user wants of the answers of a bundle; nothing: as the run answers.

    Attributes:
        rule: that combines members; "": soft, of numbers the mean.
        members: that are heard; none: all.
        views: that are averaged, as in `evaluate.views`; "": those of the evaluation.
        calibrated: whether probabilities are calibrated on the validation split.
    """

    rule: str = ""
    members: tuple[str, ...] = ()
    views: str = ""
    calibrated: bool = True

    @property
    def is_something(self) -> bool:
        """Whether anything but calibration was asked for."""
        return bool(self.rule or self.members or self.views)


def chosen_answer(
    folder: RunDir, config: Config, models: Sequence[TrainedModel], wanted: Wanted
) -> tuple[PredictionPolicy, str]:
    """Return how a bundle of a run is to answer, and in a sentence where that comes from.

    What `choral calibrate` left in answer.json, where nothing else is wanted. Else rule, temperature and conformal sets of
    90 % are fitted on the validation ledger, as `choral combine` and `choral calibrate` fit them; the split that is scored is
    not looked at.

    Raises:
        ConfigError: no such member, rule or view, or nothing to fit a rule on.
        DataError: answer.json or a ledger is damaged, or of other weights.
    """
    evaluation = evaluation_of(models, config.train.precision)
    if wanted.calibrated and not wanted.is_something and (kept := read_answer(folder)) is not None:
        check_answer(folder, kept, evaluation)
        return kept, f"as {answer_path(folder)} says"
    path = folder.predictions / f"{config.data.val_split}.parquet"
    if not path.is_file():
        why = f"'{config.data.val_split}' is not evaluated (`choral evaluate {folder.name}`)"
        return _plain(config, models, wanted, evaluation, why), f"not calibrated: {why}"
    ledger = Ledger.open(path)
    if ledger.meta.evaluation != evaluation:
        raise DataError(f"{path}: is of other weights than there are now; run `choral evaluate {folder.name}` again")
    recipe = _recipe(folder, config, ledger, wanted)
    if wanted.calibrated and len(ledger) < FEWEST and ledger.meta.task != "regression":
        why = f"'{ledger.meta.split}' has {len(ledger)} samples, and {FEWEST} are needed at least"
        return _uncalibrated(recipe, evaluation), f"not calibrated: {why}"
    if not wanted.calibrated or not (ledger.meta.task == "regression" or recipe.predictor.gives_probabilities):
        why = "as asked for" if not wanted.calibrated else f"{recipe.rule.rule} gives shares of votes, no probabilities"
        return _uncalibrated(recipe, evaluation), f"not calibrated: {why}"
    answering, _ = fitted_answer(recipe, Asked())
    return answering, f"calibrated on '{ledger.meta.split}' as `choral calibrate` does; {folder.path} is as it was"


def _recipe(folder: RunDir, config: Config, ledger: Ledger, wanted: Wanted) -> ScoredPredictor:
    """Return what is wanted as a recipe over the validation ledger, on which all of it is fitted."""
    known = replace(known_of(folder, config, ledger), validation=ledger)
    rule = wanted.rule or mean_rule(ledger.meta.task)
    asked = combination.Asked(rule, wanted.members, _columns(ledger, wanted.views), temperature="none")
    panel, fit = combination.fitted_rule(asked, ledger, known)
    found = fit.combiner
    said = np.concatenate([found(stack).predictions for _, stack in panel.blocks()])
    name = f"{found.rule}{'+tta' if panel.views != ('identity',) else ''}"
    predictor = Predictor(name, ledger, said, found.gives_probabilities)
    return ScoredPredictor(predictor, known, panel.own, panel.views, found, panel.view_weights)


def _columns(ledger: Ledger, views: str) -> tuple[str, ...]:
    """Return the columns of a ledger that are the mean over some views; none: the usual one.

    Raises:
        ConfigError: they were not evaluated.
    """
    if not views:
        return ()
    if views == "learned":
        return ("learned",)
    names = expand(views)
    if set(names) == set(ledger.meta.tta_views):
        return ("tta",)
    absent = [name for name in names if name not in ledger.views]
    if absent:
        raise ConfigError(
            f"--views {views}: {ledger.path} holds nothing under {', '.join(absent)}, so that nothing could be fitted or "
            f"scored: evaluate with --views {views} first"
        )
    return names


def _uncalibrated(recipe: ScoredPredictor, evaluation: str) -> PredictionPolicy:
    meta = recipe.predictor.ledger.meta
    plain = plain_answering(meta.task, meta.classes, recipe.members, ("identity",), recipe.average)
    return replace(plain, of=recipe.predictor.name, views=recipe.views, rule=recipe.rule, evaluation=evaluation)


def _plain(
    config: Config, models: Sequence[TrainedModel], wanted: Wanted, evaluation: str, why: str
) -> PredictionPolicy:
    """Return an answer of which nothing is fitted, without any ledger."""
    outputs, names = models[0].outputs, [model.name for model in models]
    for name in wanted.members:
        if name not in names:
            raise ConfigError(
                f"--members: no member '{name}'.{did_you_mean(name, names)} There are: {', '.join(names)}"
            )
    rules = ("mean", "median") if outputs.task == "regression" else ("soft", "hard", "geometric")
    if outputs.task == "multilabel":
        rules = ("soft", "geometric")
    rule = wanted.rule or rules[0]
    if rule not in rules:
        raise ConfigError(f"--rule {rule}: has to be fitted, and {why}; without that there are {', '.join(rules)}")
    members = [name for name in names if name in (wanted.members or names)]
    views = expand(wanted.views or config.test_views)
    plain = plain_answering(outputs.task, outputs.names, members, views, config.evaluate.average)
    return replace(plain, of=rule, rule=replace(plain.rule, rule=rule), evaluation=evaluation)
