"""What the rules of a run can be fitted on: its validation ledger, its out-of-fold predictions, its rounds of boosting."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from choral.config import Config, held_out_groups
from choral.core.errors import DataError
from choral.data.loading.boosting_weights import rounds_of
from choral.ensembles.member_predictions import MemberPredictions
from choral.ensembles.rule_fitting import Evidence, Fit, boosting_of, evidence_of, fit_stacking, fit_weights, plain
from choral.ensembles.temperature import Temperature
from choral.inference.evaluation_plan import HELD_OUT, same_weights
from choral.inference.ledger import Ledger
from choral.runs.run_dir import RunDir


@dataclass(frozen=True)
class FittingData:
    """What rules can be fitted on; without any of it, there are those that need nothing.

    Attributes:
        validation: a ledger of the same members about samples that are not scored.
        why_not: why there is none.
        held_out: out-of-fold predictions of groups of members.
        no_stack: why there are none.
        groups: name to members.
        alphas: what the vote of each round of boosting counts.
    """

    validation: Ledger | None = None
    why_not: str = ""
    held_out: Ledger | None = None
    no_stack: str = ""
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    alphas: Mapping[str, float] = field(default_factory=dict)


def known_of(folder: RunDir, config: Config, scored: Ledger) -> FittingData:
    """Return what there is to fit rules on that may be judged by a ledger.

    Raises:
        DataError: a ledger is damaged.
    """
    validation, why_not = _validation(folder, config, scored)
    held_out, no_stack = _held_out(folder, config, scored)
    rounds = rounds_of(folder) if config.ensemble.boosting else None
    return FittingData(
        validation=validation,
        why_not=why_not,
        held_out=held_out,
        no_stack=no_stack,
        groups=held_out_groups(config),
        alphas=rounds.alphas if rounds is not None else {},
    )


def rules_of(panel: MemberPredictions, known: FittingData) -> tuple[dict[str, Fit], Temperature | None]:
    """Return the rules of the table of scores, fitted, and the temperature of the soft vote, as far as there is evidence.

    Args:
        panel: that is scored: members of a ledger under one view.
        known: what to fit on, under the same view.
    """
    evidence = None
    if (validation := _of_panel(panel, known.validation)) is not None:
        evidence = evidence_of(validation, calibrate=panel.task != "regression")
    fits = {name: fit_of(name, panel, known, evidence) for name in rule_names(panel, known)}
    calibration = evidence.calibration if evidence is not None else None
    return fits, calibration.fit() if calibration is not None else None


def rule_names(panel: MemberPredictions, known: FittingData) -> list[str]:
    """Return the rules that a panel can be combined by, in the order of the table of scores."""
    plain_rules = {"regression": ["mean", "median"], "multiclass": ["soft", "hard"], "multilabel": ["soft"]}
    names = plain_rules[panel.task]
    if len(panel.members) > 1 and _of_panel(panel, known.validation) is not None:
        names += ["weighted", "greedy"]
    if known.held_out is not None and set(panel.views) <= set(known.held_out.views):
        names.append("stack")
    return [*names, "boosting"] if known.alphas and panel.task == "multiclass" else names


def fit_of(name: str, panel: MemberPredictions, known: FittingData, evidence: Evidence | None = None) -> Fit:
    """Return one rule, fitted.

    Args:
        name: one of `rule_names`.
        panel, known: as for `rules_of`.
        evidence: of the panel on validation, where it was collected already.
    """
    if name == "stack":
        assert known.held_out is not None, name
        held_out = MemberPredictions(known.held_out, known.held_out.members, panel.views)
        return fit_stacking(held_out, panel.members, known.groups)
    if name == "boosting":
        return boosting_of(panel.members, known.alphas, panel.task)
    if name not in ("weighted", "greedy"):
        return plain(name, panel.task)
    if evidence is None:
        validation = _of_panel(panel, known.validation)
        assert validation is not None, name
        evidence = evidence_of(validation)
    return fit_weights(name, evidence)


def _of_panel(panel: MemberPredictions, ledger: Ledger | None) -> MemberPredictions | None:
    """Return the same members and views of another ledger; None where it is without."""
    there = ledger is not None and set(panel.views) <= set(ledger.views)
    return MemberPredictions(ledger, panel.members, panel.views) if there and ledger is not None else None


def _validation(folder: RunDir, config: Config, scored: Ledger) -> tuple[Ledger | None, str]:
    split = config.data.val_split
    if scored.meta.split == split:
        return None, f"'{split}' is what rules are fitted on, and what is scored must be something else"
    if scored.meta.split == HELD_OUT:
        return None, f"'{HELD_OUT}' has a column a group of members, '{split}' one a member: nothing is common to fit"
    path = folder.predictions / f"{split}.parquet"
    if not path.is_file():
        command = f"choral evaluate {folder.name} 'evaluate.splits=[{split}, {scored.meta.split}]'"
        return None, f"'{split}' is not evaluated: {command}"
    ledger = Ledger.open(path)
    if not _same_voices(ledger, scored) or ledger.members != scored.members:
        return None, f"'{split}' was evaluated with other weights than '{scored.meta.split}': evaluate both again"
    return (ledger, "") if len(ledger) else (None, f"'{split}' has no sample")


def _held_out(folder: RunDir, config: Config, scored: Ledger) -> tuple[Ledger | None, str]:
    path = folder.predictions / f"{HELD_OUT}.parquet"
    if scored.meta.task == "regression":
        return None, "stack is for classes and labels; weighted is the rule for numbers"
    if not held_out_groups(config):
        return None, (
            "stack needs out-of-fold predictions, and no member of this run has left samples out: train one with "
            "ensemble.folds or ensemble.bagging"
        )
    if scored.meta.split in (HELD_OUT, config.data.train_split):
        return (
            None,
            "stack is fitted on out-of-fold predictions of the training split, and what is scored must be another",
        )
    if not path.is_file():
        return None, f"stack needs out-of-fold predictions, {path}, which is not there: `choral evaluate {folder.name}`"
    ledger = Ledger.open(path)
    if ledger.classes != scored.classes or ledger.meta.task != scored.meta.task:
        raise DataError(f"{path}: holds other classes than {scored.path}; evaluate again")
    if not same_weights(ledger.meta, scored.meta):
        return None, (
            f"{path} is of other weights or views than '{scored.meta.split}': run `choral evaluate {folder.name}`, without "
            "evaluate.held_out=false"
        )
    return (ledger, "") if len(ledger) else (None, f"{path} has no sample")


def _same_voices(one: Ledger, other: Ledger) -> bool:
    """Whether two ledgers hold predictions of the same weights with the same options, about the same classes."""
    return (one.meta.evaluation, one.classes, one.meta.task, one.meta.tta_views, one.meta.average) == (
        other.meta.evaluation,
        other.classes,
        other.meta.task,
        other.meta.tta_views,
        other.meta.average,
    )
