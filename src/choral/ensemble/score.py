"""From a ledger to scores: members and what they say together, without and with test-time views.

The result is a function of the ledger (and of the published figures put beside it) alone: no clock, no random state, no
forward pass. The same ledger gives the same numbers, digit for digit.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from choral.ensemble.class_scores import class_rows
from choral.ensemble.diversity import diversity_of
from choral.ensemble.label_scores import label_rows
from choral.ensemble.number_diversity import number_diversity
from choral.ensemble.number_scores import number_rows
from choral.ensemble.rows import SEED, Reference, Row, Scores
from choral.errors import DataError
from choral.predict.ledger import Ledger
from choral.score.intervals import DRAWS, LEVEL

__all__ = ["Scores", "score_run", "to_json"]


def score_run(
    ledger: Ledger,
    references: Sequence[Mapping[str, Any]] = (),
    absent: Mapping[str, str] | None = None,
    configured: int = 0,
) -> Scores:
    """Score the members of a ledger and what they say together.

    Multilabel and regression have a row for each metric, and of regression for each target, and name: see `label_rows`
    and `number_rows`. Of multiclass, rows are, in this order: `member/NAME`, `soft`, `hard`, then, where the ledger holds
    averaged views, `member/NAME+tta`, `soft+tta` and `hard+tta`. Each has the accuracy with its 95 % interval, the log
    loss with its own, and the paired difference in accuracy to the best single member without averaged views: the one of
    the highest accuracy, among equals that of the lowest log loss, then the first of the ledger. It is chosen on the
    samples that are scored here, which flatters it: the gains of the votes are stated a little too low, rather than too
    high.

    A ledger without the identity view is scored by what it has: its averaged views, else its first view, named
    `member/NAME+VIEW` and so on; the best member is then the best of these.

    Args:
        ledger: of one split.
        references: published figures (name, metric, value, source) that are passed on.
        absent: members of the run that the ledger is without, and why; passed on.
        configured: members of the run; 0: as many as have columns.

    Raises:
        DataError: a ledger without a sample.
    """
    if not len(ledger):
        raise DataError(f"{ledger.path}: holds no sample, nothing can be scored")
    rows: Sequence[Row]
    bootstrap: dict[str, float] = {"draws": DRAWS, "level": LEVEL, "seed": SEED}
    if ledger.meta.task == "multilabel":
        rows, best, bootstrap["draws_of_mean_ap"] = label_rows(ledger)
    elif ledger.meta.task == "regression":
        rows, best = number_rows(ledger)
    else:
        rows, best = class_rows(ledger)
    return Scores(
        task=ledger.meta.task,
        rows=rows,
        references=[
            Reference(
                name=str(item["name"]),
                metric=str(item["metric"]),
                value=float(item["value"]),
                source=str(item["source"]),
            )
            for item in references
        ],
        split=ledger.meta.split,
        n=len(ledger),
        skipped=ledger.meta.skipped,
        members=list(ledger.members),
        configured=configured or len(ledger.members),
        absent=dict(absent or {}),
        tta_views=list(ledger.meta.tta_views) if "tta" in ledger.views else [],
        best_member=best,
        dataset=ledger.meta.dataset,
        evaluation=ledger.meta.evaluation,
        bootstrap=bootstrap,
        diversity=number_diversity(ledger) if ledger.meta.task == "regression" else diversity_of(ledger),
    )


def to_json(scores: Scores) -> str:
    """Return the scores as JSON text; the same scores give the same text."""
    return json.dumps(scores, indent=1, ensure_ascii=False, allow_nan=False)
