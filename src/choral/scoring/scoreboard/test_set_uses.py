"""How often the test data have been looked at: each look makes the best of what was seen a little luckier than it is good.

A look is a predictor whose figures about a test split were shown or kept, and had not been before. The same figures again
are no further look, whichever command shows them: a predictor is known by its figures, to six digits. What a run was
trained on or chosen by (its train and val splits, out-of-fold predictions) is no test split. Counted are the looks
of all runs under one folder (runs/), for each data set, split and task by themselves, and told by how many runs they came:
the rows of one run's only table are many looks, but one occasion. Another config under the name of a deleted run is
another run. They stand in runs/scoreboard/_looks/, and survive the
deletion of runs.
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
from choral.ensembles.score_rows import Row
from choral.inference.evaluation_plan import HELD_OUT
from choral.inference.ledger import LedgerMeta
from choral.metrics.per_sample import correct, label_log_losses, log_losses
from choral.runs.run_dir import RunDir, is_run
from choral.scoring.predictor import Predictor

Figures = Sequence[float]
"""That tell a predictor from others about the same samples: of multiclass accuracy and log loss (of a hard vote, which has
none, the accuracy alone), of multilabel the log loss (where thresholds decide also how many labels are right), of regression
the mean absolute error of each target."""


class TestSetUses(NamedTuple):
    """How often a split was looked at."""

    predictors: int
    """Whose figures have been seen."""
    runs: int
    """Whose predictors these are."""


def is_test(config: Config, split: str) -> bool:
    """Return whether figures of a split are figures of test data; those of other data (SPLIT@NAME) always are."""
    return split not in (config.data.train_split, config.data.val_split, HELD_OUT)


def scoreboard_of(folder: RunDir) -> Path:
    """Return where the scoreboards of the runs beside this one are: runs/scoreboard; of a member, beside its ensemble, of a
    trial of `choral tune` beside the run that it is of."""
    return _runs(folder) / "scoreboard"


def run_of(folder: RunDir) -> str:
    """Return what a run is called on the scoreboard: its name, of a member ENSEMBLE/members/NAME, of a trial of `choral tune`
    RUN/tune/trials/NUMBER."""
    return folder.path.resolve().relative_to(_runs(folder)).as_posix()


def look_at(folder: RunDir, config: Config, predictors: Sequence[Predictor]) -> None:
    """Count the predictors, all of one split, whose figures are about to be shown or kept, if they are of test data.

    A count that cannot be written is said on stderr, and costs nothing else.
    """
    if predictors:
        seen = {predictor.name: _figures_of(predictor) for predictor in predictors}
        _note(folder, config, predictors[0].ledger.meta, seen)


def look_at_rows(folder: RunDir, config: Config, meta: LedgerMeta, rows: Sequence[Row]) -> None:
    """Like `look_at`, of the rows of a table of scores of a ledger."""
    _note(folder, config, meta, _figures_of_rows(meta.task, rows))


def looks_so_far(scoreboard: Path, dataset: str, split: str, task: str) -> TestSetUses:
    """Return how many looks there have been at a split, by the runs beside the scoreboards; none at what is no test split."""
    lines = _journal(scoreboard, dataset, split, task).read()[0]
    return TestSetUses(len(lines), len({(line["run"], line.get("config")) for line in lines}))


def looks_line(folder: RunDir, config: Config, meta: LedgerMeta) -> str:
    """Return what stands under every table of test scores; "" under those of a split that is none.

    It is the same for the same table, however often that is printed.
    """
    if not is_test(config, meta.split):
        return ""
    try:
        return looks_text(looks_so_far(scoreboard_of(folder), meta.dataset, meta.split, meta.task), meta.split)
    except ChoralError as error:
        return f"how often this test split was looked at is not known: {error}"


def looks_text(uses: TestSetUses, split: str) -> str:
    """Return the line for so many looks."""
    count, runs = uses
    ending = {1: "st", 2: "nd", 3: "rd"}.get(count % 10 if count % 100 not in (11, 12, 13) else 0, "th")
    line = f"{count}{ending} look at this test split ({split})"
    if count < 2:
        return line
    by = "one run" if runs == 1 else f"{runs} runs"
    return f"{line}, by {by}: figures of {count} predictors have been seen so far, which flatters the best of them"


def _runs(folder: RunDir) -> Path:
    path = folder.path.resolve()
    if path.parent.parts[-2:] == ("tune", "trials") and (path.parent.parent / "space.json").is_file():
        return path.parents[3]
    ensemble = path.parent.parent
    return ensemble.parent if path == RunDir(ensemble).member(path.name).path and is_run(ensemble) else path.parent


def _note(folder: RunDir, config: Config, meta: LedgerMeta, seen: Mapping[str, Figures]) -> None:
    if not is_test(config, meta.split):
        return
    now = datetime.now(UTC).isoformat(timespec="seconds")
    common = {"run": folder.name, "config": config_hash(config), "date": now}
    lines = [{"id": _identity(figures), "predictor": name, **common} for name, figures in seen.items()]

    def new(there: list[dict[str, Any]]) -> list[dict[str, Any]]:
        known = {line["id"] for line in there}
        return list({line["id"]: line for line in lines[::-1] if line["id"] not in known}.values())[::-1]

    try:
        _journal(scoreboard_of(folder), meta.dataset, meta.split, meta.task).append(new)
    except ChoralError as error:
        print(f"this look at split {meta.split} is not counted: {error}", file=sys.stderr)


def _journal(scoreboard: Path, dataset: str, split: str, task: str) -> Journal:
    digest = hashlib.sha256(json.dumps([dataset, split, task]).encode()).hexdigest()
    return Journal(scoreboard / "_looks" / f"{split}-{digest[:16]}.jsonl")


def _identity(figures: Figures) -> str:
    text = " ".join(
        f"{value:.6g}" for value in figures
    )  # devices differ beyond, and the same weights are no further look
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _figures_of(predictor: Predictor) -> Figures:
    """Return a predictor's figures as the table of scores has them."""
    labels, said = predictor.ledger.labels, predictor.predictions
    if predictor.ledger.meta.task == "multiclass":
        hits = correct(labels, predictor.answers)
        return [_mean(hits), _mean(log_losses(labels, said))] if predictor.gives_probabilities else [_mean(hits)]
    if predictor.ledger.meta.task == "multilabel":
        losses = [_mean(label_log_losses(labels > 0, said))]
        return losses if predictor.decided is None else [*losses, ((labels > 0) == predictor.answers).mean()]
    errors = abs(said.astype("f8") - labels.astype("f8"))
    return [_mean(errors[:, target]) for target in range(errors.shape[1])]


def _figures_of_rows(task: str, rows: Sequence[Row]) -> dict[str, Figures]:
    metric = {"multiclass": "accuracy", "multilabel": "log_loss", "regression": "mae"}[task]
    seen: dict[str, list[float]] = {}
    for row in rows:
        if row["metric"] == metric:
            seen.setdefault(row["name"], []).append(row["value"])
            if loss := cast(Mapping[str, Any], row).get("log_loss"):
                seen[row["name"]].append(loss["value"])
    return dict(seen)


def _mean(values: Any) -> float:
    return math.fsum(values) / len(values)
