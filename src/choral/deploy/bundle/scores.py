"""What a bundle scores: of how it answers, by split, with intervals, and by slice."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from choral.config import Config
from choral.core.errors import ChoralError
from choral.inference.evaluation_plan import HELD_OUT
from choral.inference.external_data import index_of
from choral.inference.ledger import Ledger
from choral.runs.run_dir import RunDir
from choral.scoring.policy import PredictionPolicy, answer_panel
from choral.scoring.policy_evaluation import judged_sets
from choral.scoring.predictor import Predictor
from choral.scoring.predictor_report import card_json
from choral.scoring.scoreboard.test_set_uses import look_at
from choral.scoring.slice_metrics import slices_json
from choral.scoring.slices import columns_of, slices_of

NAME = "bundle"
_NO_SLICES = ("ext", "length", "group", "label")
_MOST_SLICES = 8


def scores_of(folder: RunDir, config: Config, answering: PredictionPolicy) -> dict[str, Any]:
    """Return, by evaluated split, the number of samples and each metric with its 95 % interval.

    Splits without the members and views that are heard are left out. Figures of test data count as a look at them.
    """
    found = {}
    for predictor in _predictors(folder, config, answering):
        card, split = card_json(predictor), predictor.ledger.meta.split
        found[split] = {
            "n": card["n"],
            "chosen_on_it": split in (config.data.val_split, answering.fitted_on.get("split")),
            "metrics": card["metrics"],
            "by_class": card["by_class"],
            **_sets(answering, predictor),
        }
    return found


def _sets(answering: PredictionPolicy, predictor: Predictor) -> dict[str, Any]:
    """Return under `sets` how often conformal sets or intervals hold the truth; nothing where there are none."""
    if answering.conformal is None:
        return {}
    return {"sets": judged_sets(answering, predictor.ledger.labels, predictor.predictions)}


def slices_by_column(folder: RunDir, config: Config, answering: PredictionPolicy) -> dict[str, Any]:
    """Return, of the split that is scored, the metrics of slices by each column of its metadata that has a few values."""
    predictors = {one.ledger.meta.split: one for one in _predictors(folder, config, answering)}
    usual = [name for name in ("test", *reversed(config.evaluate.splits)) if name in predictors]
    if not usual:
        return {}
    predictor, tables = predictors[usual[0]], {}
    try:
        index = index_of(folder, config, usual[0])
        for column in columns_of(index):
            if column in _NO_SLICES:
                continue
            slices = slices_of(index, predictor.ledger.keys, column)
            if 1 < len(slices) <= _MOST_SLICES:
                tables[column] = slices_json(predictor, slices, column)
    except ChoralError:  # the data are elsewhere, or were packed again: there are no columns to go by
        return {}
    return {"split": usual[0], "columns": tables}


def _predictors(folder: RunDir, config: Config, answering: PredictionPolicy) -> Iterator[Predictor]:
    """Yield what is answered about each evaluated split of these weights."""
    for path in sorted(folder.predictions.glob("*.parquet")):
        if path.stem in (HELD_OUT, config.data.train_split):
            continue
        ledger = Ledger.open(path)
        panel = answer_panel(answering, ledger)
        same = ledger.meta.evaluation == answering.evaluation and set(panel.views) <= set(ledger.views)
        if not same or not len(ledger):
            continue
        said = np.concatenate([answering.said(stack) for _, stack in panel.blocks()])
        chosen = answering.decision.kind == "costs" or answering.decision.thresholds
        decided = answering.decide(said) if chosen else None
        predictor = Predictor(NAME, ledger, said, answering.gives_probabilities, decided)
        look_at(folder, config, [predictor])
        yield predictor
