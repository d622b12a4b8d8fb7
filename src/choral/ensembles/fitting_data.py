"""The data that combination rules of a run can be fitted on: validation ledger, out-of-fold predictions, boosting rounds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from choral.config import Config, held_out_groups
from choral.core.errors import DataError
from choral.data.loading.boosting_weights import read_rounds
from choral.ensembles.member_predictions import MemberPredictions
from choral.ensembles.rule_fitting import (
    FittedRule,
    FittingStatistics,
    boosting_rule,
    compute_statistics,
    fit_stacking_rule,
    fit_weights,
    unfitted_rule,
)
from choral.ensembles.temperature import Temperature
from choral.inference.evaluation_plan import HELD_OUT, same_weights
from choral.inference.ledger import Ledger
from choral.runs.run_dir import RunDir


@dataclass(frozen=True)
class FittingData:
    """What rules can be fitted on. Without any of it, only rules without parameters are available.

    Attributes:
        validation: ledger of the same members on samples that are not scored.
        no_validation_reason: why there is none; "" if there is.
        held_out: ledger of out-of-fold predictions, a column a group of members.
        no_stacking_reason: why there is none; "" if there is.
        groups: group name to its members.
        alphas: boosting member to the weight of its vote.
    """

    validation: Ledger | None = None
    no_validation_reason: str = ""
    held_out: Ledger | None = None
    no_stacking_reason: str = ""
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    alphas: Mapping[str, float] = field(default_factory=dict)


def load_fitting_data(run_dir: RunDir, config: Config, scored: Ledger) -> FittingData:
    """Return what a run has to fit rules on that are then scored on a ledger.

    Raises:
        DataError: a ledger is damaged.
    """
    validation, no_validation_reason = _open_validation(run_dir, config, scored)
    held_out, no_stacking_reason = _open_held_out(run_dir, config, scored)
    rounds = read_rounds(run_dir) if config.ensemble.boosting else None
    return FittingData(
        validation=validation,
        no_validation_reason=no_validation_reason,
        held_out=held_out,
        no_stacking_reason=no_stacking_reason,
        groups=held_out_groups(config),
        alphas=rounds.alphas if rounds is not None else {},
    )


def fit_rules(scored: MemberPredictions, fitting_data: FittingData) -> tuple[dict[str, FittedRule], Temperature | None]:
    """Return every available rule, fitted, and the temperature of the soft vote if there is validation data.

    Args:
        scored: members of the scored ledger under one view.
        fitting_data: what to fit on, under the same view.
    """
    statistics = None
    if (validation := _on_ledger(scored, fitting_data.validation)) is not None:
        statistics = compute_statistics(validation, calibrate=scored.task != "regression")
    rules = {name: fit_rule(name, scored, fitting_data, statistics) for name in available_rules(scored, fitting_data)}
    fitter = statistics.temperature_fitter if statistics is not None else None
    return rules, fitter.fit() if fitter is not None else None


def available_rules(scored: MemberPredictions, fitting_data: FittingData) -> list[str]:
    """Return the rules that can combine these members, in the order of the score table."""
    without_parameters = {"regression": ["mean", "median"], "multiclass": ["soft", "hard"], "multilabel": ["soft"]}
    names = without_parameters[scored.task]
    if len(scored.members) > 1 and _on_ledger(scored, fitting_data.validation) is not None:
        names += ["weighted", "greedy"]
    if fitting_data.held_out is not None and set(scored.views) <= set(fitting_data.held_out.views):
        names.append("stack")
    return [*names, "boosting"] if fitting_data.alphas and scored.task == "multiclass" else names


def fit_rule(
    name: str, scored: MemberPredictions, fitting_data: FittingData, statistics: FittingStatistics | None = None
) -> FittedRule:
    """Return one rule, fitted.

    Args:
        name: one of `available_rules`.
        scored, fitting_data: as for `fit_rules`.
        statistics: of the same members on validation, if already computed.
    """
    if name == "stack":
        assert fitting_data.held_out is not None, name
        held_out = MemberPredictions(fitting_data.held_out, fitting_data.held_out.members, scored.views)
        return fit_stacking_rule(held_out, scored.members, fitting_data.groups)
    if name == "boosting":
        return boosting_rule(scored.members, fitting_data.alphas, scored.task)
    if name not in ("weighted", "greedy"):
        return unfitted_rule(name, scored.task)
    if statistics is None:
        validation = _on_ledger(scored, fitting_data.validation)
        assert validation is not None, name
        statistics = compute_statistics(validation)
    return fit_weights(name, statistics)


def _on_ledger(scored: MemberPredictions, ledger: Ledger | None) -> MemberPredictions | None:
    """Return the same members and views of another ledger; None if it lacks a view."""
    if ledger is None or not set(scored.views) <= set(ledger.views):
        return None
    return MemberPredictions(ledger, scored.members, scored.views)


def _open_validation(run_dir: RunDir, config: Config, scored: Ledger) -> tuple[Ledger | None, str]:
    """Return the validation ledger, or the reason why it cannot be used."""
    split = config.data.val_split
    if scored.meta.split == split:
        return None, f"rules are fitted on '{split}', so they cannot be scored on it"
    if scored.meta.split == HELD_OUT:
        return None, f"'{HELD_OUT}' has a column for each group of members, '{split}' one for each member"
    path = run_dir.predictions / f"{split}.parquet"
    if not path.is_file():
        command = f"choral evaluate {run_dir.name} 'evaluate.splits=[{split}, {scored.meta.split}]'"
        return None, f"'{split}' is not evaluated: {command}"
    ledger = Ledger.open(path)
    if not _same_evaluation(ledger, scored) or ledger.members != scored.members:
        return None, f"'{split}' was evaluated with other weights than '{scored.meta.split}': evaluate both again"
    return (ledger, "") if len(ledger) else (None, f"'{split}' has no samples")


def _open_held_out(run_dir: RunDir, config: Config, scored: Ledger) -> tuple[Ledger | None, str]:
    """Return the ledger of out-of-fold predictions, or the reason why a stack cannot be fitted."""
    path = run_dir.predictions / f"{HELD_OUT}.parquet"
    if scored.meta.task == "regression":
        return None, "stack is a rule for classes and labels; use weighted for regression"
    if not held_out_groups(config):
        return None, (
            "stack needs out-of-fold predictions, but no member of this run left samples out of training: train with "
            "ensemble.folds or ensemble.bagging"
        )
    if scored.meta.split in (HELD_OUT, config.data.train_split):
        return None, "stack is fitted on out-of-fold predictions of the training split, so it must be scored on another"
    if not path.is_file():
        return None, f"stack needs out-of-fold predictions; {path} does not exist: `choral evaluate {run_dir.name}`"
    ledger = Ledger.open(path)
    if ledger.classes != scored.classes or ledger.meta.task != scored.meta.task:
        raise DataError(f"{path}: holds other classes than {scored.path}; evaluate again")
    if not same_weights(ledger.meta, scored.meta):
        return None, (
            f"{path} was computed with other weights or views than '{scored.meta.split}': run `choral evaluate "
            f"{run_dir.name}` without evaluate.held_out=false"
        )
    return (ledger, "") if len(ledger) else (None, f"{path} has no samples")


def _same_evaluation(one: Ledger, other: Ledger) -> bool:
    """Whether two ledgers hold predictions of the same weights with the same options, for the same classes."""
    return (one.meta.evaluation, one.classes, one.meta.task, one.meta.tta_views, one.meta.average) == (
        other.meta.evaluation,
        other.classes,
        other.meta.task,
        other.meta.tta_views,
        other.meta.average,
    )
