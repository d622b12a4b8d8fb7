"""How often a test split has been used: the more predictors are measured on it, the more the best of them is biased upwards.

Each predictor whose metrics on a test split are shown or stored for the first time is one use of that split. Equal metrics
to six digits are the same predictor, whichever command computes them. The splits that a run is trained or selected on
(train, val, out-of-fold predictions) are no test splits. Uses are counted over all runs under one directory (runs/), for each
data set, split and task, together with the number of these runs: the rows of a single table are many uses, but of one run.
A different config under the name of a deleted run is a different run. The counts are stored in
runs/scoreboard/_test_set_uses/ and outlive the runs.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, cast

from choral.config import Config, config_hash
from choral.core.errors import ChoralError
from choral.core.journal import Journal
from choral.ensembles.score_rows import ScoreRow
from choral.inference.evaluation_plan import HELD_OUT
from choral.inference.ledger import LedgerMeta
from choral.metrics.per_sample import correct, log_losses, multilabel_log_losses
from choral.runs.run_dir import RunDir, is_run_dir
from choral.scoring.predictor import Predictor

IdentifyingMetrics = Sequence[float]
"""The metrics that identify a predictor among others on the same samples. Multiclass: accuracy and log loss (hard vote:
accuracy only). Multilabel: log loss (with thresholds, label accuracy too). Regression: mean absolute error of each target."""

_DIR, _OLD_DIR = "_test_set_uses", "_looks"


class TestSetUses(NamedTuple):
    """How often a split has been used."""

    predictors: int
    """Predictors whose metrics have been viewed."""
    runs: int
    """Runs that these predictors belong to."""


def is_test_split(config: Config, split: str) -> bool:
    """Return whether a split holds test data; splits of external data (SPLIT@NAME) always do."""
    return split not in (config.data.train_split, config.data.val_split, HELD_OUT)


def resolve_scoreboard_root(folder: RunDir) -> Path:
    """Return runs/scoreboard, the directory of the scoreboards of a run.

    A member uses that of its ensemble, a trial of `choral tune` that of the tuned run.
    """
    return _find_runs_root(folder) / "scoreboard"


def resolve_run_name(folder: RunDir) -> str:
    """Return the name of a run on the scoreboard.

    A member is called ENSEMBLE/members/NAME, a trial of `choral tune` RUN/tune/trials/NUMBER.
    """
    return folder.path.resolve().relative_to(_find_runs_root(folder)).as_posix()


def record_test_set_uses(folder: RunDir, config: Config, predictors: Sequence[Predictor]) -> None:
    """Count predictors, all of one split, whose metrics are about to be shown or stored; nothing where it is no test split.

    A count that cannot be written is reported on stderr and raises nothing.
    """
    if predictors:
        metrics = {predictor.name: _compute_identifying_metrics(predictor) for predictor in predictors}
        _append_uses(folder, config, predictors[0].ledger.meta, metrics)


def record_test_set_uses_from_rows(folder: RunDir, config: Config, meta: LedgerMeta, rows: Sequence[ScoreRow]) -> None:
    """Count the predictors of a score table, as `record_test_set_uses` does."""
    _append_uses(folder, config, meta, _read_identifying_metrics(meta.task, rows))


def read_test_set_uses(scoreboard: Path, dataset: str, split: str, task: str) -> TestSetUses:
    """Return how often the runs beside a directory of scoreboards have used a split; zero where it is no test split."""
    lines = _journal(scoreboard, dataset, split, task).read()[0]
    return TestSetUses(len(lines), len({(line["run"], line.get("config")) for line in lines}))


def build_test_set_uses_note(folder: RunDir, config: Config, meta: LedgerMeta) -> str:
    """Return the line below every table of test metrics; "" for other splits.

    It stays the same however often the same table is printed.
    """
    if not is_test_split(config, meta.split):
        return ""
    try:
        uses = read_test_set_uses(resolve_scoreboard_root(folder), meta.dataset, meta.split, meta.task)
    except ChoralError as error:
        return f"the number of uses of this test split is unknown: {error}"
    return format_test_set_uses(uses, meta.split)


def format_test_set_uses(uses: TestSetUses, split: str) -> str:
    """Return a number of uses as a sentence."""
    count, runs = uses
    ending = {1: "st", 2: "nd", 3: "rd"}.get(count % 10 if count % 100 not in (11, 12, 13) else 0, "th")
    line = f"{count}{ending} use of this test split ({split})"
    if count < 2:
        return line
    by = "one run" if runs == 1 else f"{runs} runs"
    return f"{line}, by {by}: metrics of {count} predictors have been viewed, which biases the best of them upwards"


def _find_runs_root(folder: RunDir) -> Path:
    path = folder.path.resolve()
    if path.parent.parts[-2:] == ("tune", "trials") and (path.parent.parent / "space.json").is_file():
        return path.parents[3]
    ensemble = path.parent.parent
    is_member = path == RunDir(ensemble).member(path.name).path and is_run_dir(ensemble)
    return ensemble.parent if is_member else path.parent


def _append_uses(folder: RunDir, config: Config, meta: LedgerMeta, metrics: Mapping[str, IdentifyingMetrics]) -> None:
    if not is_test_split(config, meta.split):
        return
    now = datetime.now(UTC).isoformat(timespec="seconds")
    common = {"run": folder.name, "config": config_hash(config), "date": now}
    lines = [{"id": _hash_metrics(values), "predictor": name, **common} for name, values in metrics.items()]

    def select_new(existing: list[dict[str, Any]]) -> list[dict[str, Any]]:
        ids = {line["id"] for line in existing}
        return list({line["id"]: line for line in lines[::-1] if line["id"] not in ids}.values())[::-1]

    try:
        _journal(resolve_scoreboard_root(folder), meta.dataset, meta.split, meta.task).append(select_new)
    except ChoralError as error:
        print(f"this use of split {meta.split} is not counted: {error}", file=sys.stderr)


def _journal(scoreboard: Path, dataset: str, split: str, task: str) -> Journal:
    digest = hashlib.sha256(json.dumps([dataset, split, task]).encode()).hexdigest()
    name = f"{split}-{digest[:16]}.jsonl"
    old = scoreboard / _OLD_DIR / name  # written by earlier versions, and continued
    return Journal(old if old.is_file() else scoreboard / _DIR / name)


def _hash_metrics(metrics: IdentifyingMetrics) -> str:
    # Later digits differ between devices, and the same weights on another device are the same predictor.
    text = " ".join(f"{value:.6g}" for value in metrics)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _compute_identifying_metrics(predictor: Predictor) -> IdentifyingMetrics:
    """Return a predictor's metrics, equal to those of the score table."""
    labels, predictions = predictor.ledger.labels, predictor.predictions
    if predictor.ledger.meta.task == "multiclass":
        hits = correct(labels, predictor.decisions)
        return [_mean(hits), _mean(log_losses(labels, predictions))] if predictor.gives_probabilities else [_mean(hits)]
    if predictor.ledger.meta.task == "multilabel":
        losses = [_mean(multilabel_log_losses(labels > 0, predictions))]
        return losses if predictor.decided is None else [*losses, ((labels > 0) == predictor.decisions).mean()]
    errors = abs(predictions.astype("f8") - labels.astype("f8"))
    return [_mean(errors[:, target]) for target in range(errors.shape[1])]


def _read_identifying_metrics(task: str, rows: Sequence[ScoreRow]) -> dict[str, IdentifyingMetrics]:
    metric = {"multiclass": "accuracy", "multilabel": "log_loss", "regression": "mae"}[task]
    metrics: dict[str, list[float]] = {}
    for row in rows:
        if row["metric"] == metric:
            metrics.setdefault(row["name"], []).append(row["value"])
            if loss := cast(Mapping[str, Any], row).get("log_loss"):
                metrics[row["name"]].append(loss["value"])
    return dict(metrics)


def _mean(values: Any) -> float:
    return math.fsum(values) / len(values)
