"""The scores of a bundle's policy by split, with intervals, and by slice."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from choral.config import Config
from choral.core.errors import ChoralError
from choral.inference.evaluation_plan import HELD_OUT
from choral.inference.external_data import open_ledger_index
from choral.inference.ledger import Ledger
from choral.runs.run_dir import RunDir
from choral.scoring.policy import PredictionPolicy, select_policy_inputs
from choral.scoring.policy_evaluation import evaluate_sets
from choral.scoring.predictor import Predictor
from choral.scoring.predictor_report import build_predictor_report
from choral.scoring.scoreboard.test_set_uses import record_test_set_uses
from choral.scoring.slice_metrics import compute_slice_metrics
from choral.scoring.slices import list_slice_columns, split_by_column

NAME = "bundle"
_NO_SLICES = ("ext", "length", "group", "label")
_MOST_SLICES = 8


def compute_bundle_scores(folder: RunDir, config: Config, policy: PredictionPolicy) -> dict[str, Any]:
    """Return, by evaluated split, the number of samples and each metric with its 95 % interval.

    Splits whose ledgers lack members or views of the policy are skipped. Test metrics count as a use of the test split.
    """
    found = {}
    for predictor in _predictors(folder, config, policy):
        card, split = build_predictor_report(predictor), predictor.ledger.meta.split
        found[split] = {
            "n": card["n"],
            "chosen_on_it": split in (config.data.val_split, policy.fitted_on.get("split")),
            "metrics": card["metrics"],
            "by_class": card["by_class"],
            **_sets(policy, predictor),
        }
    return found


def _sets(policy: PredictionPolicy, predictor: Predictor) -> dict[str, Any]:
    """Return under `sets` how often conformal sets or intervals hold the truth; nothing where there are none."""
    if policy.conformal is None:
        return {}
    return {"sets": evaluate_sets(policy, predictor.ledger.labels, predictor.predictions)}


def compute_bundle_slices(folder: RunDir, config: Config, policy: PredictionPolicy) -> dict[str, Any]:
    """Return, of the split that is scored, the metrics of slices by each column of its metadata that has a few values."""
    predictors = {one.ledger.meta.split: one for one in _predictors(folder, config, policy)}
    usual = [name for name in ("test", *reversed(config.evaluate.splits)) if name in predictors]
    if not usual:
        return {}
    predictor, tables = predictors[usual[0]], {}
    try:
        index = open_ledger_index(folder, config, usual[0])
        for column in list_slice_columns(index):
            if column in _NO_SLICES:
                continue
            slices = split_by_column(index, predictor.ledger.keys, column)
            if 1 < len(slices) <= _MOST_SLICES:
                tables[column] = compute_slice_metrics(predictor, slices, column)
    except ChoralError:  # the data were moved or packed again: their columns cannot be read
        return {}
    return {"split": usual[0], "columns": tables}


def _predictors(folder: RunDir, config: Config, policy: PredictionPolicy) -> Iterator[Predictor]:
    """Yield the policy's predictions of each split that was evaluated with these weights."""
    for path in sorted(folder.predictions.glob("*.parquet")):
        if path.stem in (HELD_OUT, config.data.train_split):
            continue
        ledger = Ledger.open(path)
        member_predictions = select_policy_inputs(policy, ledger)
        same = ledger.meta.evaluation == policy.evaluation and set(member_predictions.views) <= set(ledger.views)
        if not same or not len(ledger):
            continue
        combined = np.concatenate([policy.combine(stack) for _, stack in member_predictions.blocks()])
        chosen = policy.decision.kind == "costs" or policy.decision.thresholds
        decided = policy.decide(combined) if chosen else None
        predictor = Predictor(NAME, ledger, combined, policy.gives_probabilities, decided)
        record_test_set_uses(folder, config, [predictor])
        yield predictor
