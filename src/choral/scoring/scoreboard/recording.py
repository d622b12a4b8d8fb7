"""Appends an evaluation to the scoreboard: the few predictors of a run that represent its steps."""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from choral.config import Config, config_hash, held_out_groups
from choral.core.errors import ChoralError, DataError
from choral.data.shards.index import Dataset
from choral.ensembles.fitting_data import load_fitting_data
from choral.ensembles.member_predictions import MemberPredictions
from choral.ensembles.score_rows import interval_to_dict, scored_views
from choral.inference.ledger import Ledger
from choral.inference.run_models import member_run_dirs
from choral.metrics.per_sample import log_losses, multilabel_log_losses
from choral.runs.run_dir import RunDir
from choral.scoring.predictor import COMBINED, list_predictors, load_predictor, open_evaluated_ledger
from choral.scoring.scoreboard.board import Entry, Scoreboard, compute_id
from choral.scoring.scoreboard.test_set_uses import record_test_set_uses, resolve_run_name, resolve_scoreboard_root
from choral.scoring.stored_predictor import StoredPredictions, StoredSamples, compute_estimates

_ANSWER = "answer"  # the predictor that `choral calibrate` fits on top of another one
_FITTED = {"soft+learned": "+learned", "mean+learned": "+learned", _ANSWER: "+calibrated"}


def record_steps(folder: RunDir, config: Config, split: str, *further: str) -> None:
    """Append the evaluation of a split to the scoreboard of the run's project, and count the use of a test split.

    Recorded are, for an ensemble, the member with the lowest validation loss, the soft vote, and the soft vote over test-time
    views; for a single model, the model without and with views; then learned and calibrated predictors. The training split is
    not recorded, except out-of-fold predictions.
    Errors are printed on stderr, because the scoreboard must not make an evaluation fail.

    Args:
        folder, config: of the run.
        split: an evaluated split.
        further: names of more predictors to record, such as combined/NAME.
    """
    if split == config.data.train_split:
        return
    with _errors_on_stderr(folder, split):
        ledger = open_evaluated_ledger(folder, config, split)
        if len(ledger):
            steps = list_step_predictors(folder, config, ledger)
            names = sorted(dict.fromkeys([*steps, *further]), key=lambda name: name == _ANSWER)
            _append(folder, config, ledger, names)


def record_combination(folder: RunDir, config: Config, split: str, name: str) -> None:
    """Append only the combination called `name`, which reads one column of the ledger; `record_steps` reads all of them.

    Errors are printed on stderr, as in `record_steps`.
    """
    with _errors_on_stderr(folder, split):
        _append(folder, config, open_evaluated_ledger(folder, config, split), [f"{COMBINED}{name}"])


@contextlib.contextmanager
def _errors_on_stderr(folder: RunDir, split: str) -> Iterator[None]:
    try:
        yield
    except (ChoralError, OSError) as error:
        print(f"split {split} of {folder.path} is not on the scoreboard: {error}", file=sys.stderr)


def resolve_project(config: Config) -> str:
    """Return the project of a run: `Config.project`, else the name of the data set, or of its directory."""
    if config.project:
        return config.project
    try:
        name = Dataset.open(config.data.shards).name
    except DataError:  # the data may have been moved
        name = Path(config.data.shards).absolute().name
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._") or "data"


def list_step_predictors(folder: RunDir, config: Config, ledger: Ledger) -> list[str]:
    """Return the names of the predictors that represent the steps of an evaluated run, each building on the one before."""
    suffixes = [suffix for _, suffix in scored_views(ledger)]
    first = f"member/{_select_best_member(folder, config, ledger)}"
    names = [f"{first}{suffixes[0]}"]
    vote = first
    if len(ledger.members) > 1:
        vote = "mean" if ledger.meta.task == "regression" else "soft"
        names.append(f"{vote}{suffixes[0]}")
    names += [f"{vote}{suffix}" for suffix in suffixes[1:]]
    available = list_predictors(folder, config, ledger.meta.split)
    return names + [name for name in _FITTED if name in available]


def describe_added_part(predictor: str, first: str) -> str:
    """Return `Entry.part` of a predictor: what it adds to the first predictor of its run; "" for the first itself."""
    if predictor in _FITTED:
        return _FITTED[predictor]
    if predictor.startswith(COMBINED):
        return f"+{predictor.removeprefix(COMBINED)}"
    if predictor == first:
        return ""
    name, plus, view = predictor.partition("+")
    if name in ("soft", "mean"):
        return f"+{view}" if plus else "+ensemble"
    return f"+{view}" if name == first.partition("+")[0] else f"+{predictor.removeprefix('member/')}"


def _select_best_member(folder: RunDir, config: Config, ledger: Ledger) -> str:
    """Return the member with the lowest validation loss, or the first one where there is no validation ledger.

    The split that is scored must not choose it.
    """
    validation = load_fitting_data(folder, config, ledger).validation
    view = scored_views(ledger)[0][0]
    if len(ledger.members) == 1 or validation is None or view not in validation.views:
        return ledger.members[0]
    sums = np.zeros(len(ledger.members))
    for labels, stack in MemberPredictions(validation, ledger.members, (view,)).blocks():
        sums += [_compute_losses(ledger.meta.task, labels, predictions).sum() for predictions in stack]
    return ledger.members[int(sums.argmin())]


def _compute_losses(task: str, labels: NDArray[np.float32], predictions: NDArray[np.float32]) -> NDArray[np.float64]:
    if task == "multiclass":
        return log_losses(labels.astype(np.int64), predictions)
    if task == "multilabel":
        return multilabel_log_losses(labels > 0, predictions)
    errors: NDArray[np.float64] = ((predictions.astype(np.float64) - labels) ** 2).mean(axis=1)
    return errors


def _append(folder: RunDir, config: Config, ledger: Ledger, names: Sequence[str]) -> None:
    """Append the predictors that the scoreboard lacks; only one predictor's predictions are in memory at a time."""
    meta, samples = ledger.meta, StoredSamples.of(ledger)
    data = samples.digest(meta.dataset, meta.split, meta.task, meta.classes)
    board = Scoreboard(resolve_scoreboard_root(folder) / resolve_project(config))
    run, step, now = (
        resolve_run_name(folder),
        config.step or folder.name,
        datetime.now(UTC).isoformat(timespec="seconds"),
    )
    entries = board.entries_of_run(run).values()
    recorded = {
        entry.content_id for entry in entries if (entry.run, entry.step) == (run, step) and board.is_intact(entry)
    }
    content_ids: dict[str, str] = {}
    records: dict[str, StoredPredictions] = {}
    decided: set[str] = set()
    for name in names:
        provenance = _describe_provenance(ledger, name)
        if provenance and compute_id(name, data, provenance) in recorded:
            continue
        predictor = load_predictor(folder, config, meta.split, name)
        record_test_set_uses(folder, config, [predictor])
        records[name] = StoredPredictions.of(predictor)
        # Of multilabel, the metrics here are computed from probabilities, which decisions do not change.
        if meta.task == "multiclass" and predictor.decided is not None:
            decided.add(name)
        content_ids[name] = compute_id(name, data, provenance or records[name].digest)
    estimates = compute_estimates(meta.task, ledger.labels, records)
    for name, record in records.items():
        entry = Entry(
            id=compute_id(run, content_ids[name]),
            content_id=content_ids[name],
            step=step,
            part="+decided" if name in decided else describe_added_part(name, names[0]),
            run=run,
            predictor=name,
            members=ledger.members,
            split=meta.split,
            dataset=meta.dataset,
            data=data,
            task=meta.task,
            classes=meta.classes,
            samples=len(ledger),
            metrics={
                metric: interval_to_dict(found[name].interval) for metric, found in estimates.items() if name in found
            },
            minutes=_sum_training_minutes(folder, config, name),
            config=config_hash(config),
            date=now,
            record="",
        )
        board.append(entry, record, samples)


def _describe_provenance(ledger: Ledger, name: str) -> str:
    """Return what determines the predictions of a member or an unweighted mean: weights, views and so on; "": unknown.

    It identifies them where their values cannot: devices differ in the last digits.
    """
    meta = ledger.meta
    if not meta.evaluation or not re.fullmatch(r"(member/[^/]*|soft|mean)(\+tta)?", name):
        return ""
    return json.dumps([meta.evaluation, meta.members, meta.tta_views, meta.average])


def _sum_training_minutes(folder: RunDir, config: Config, predictor: str) -> float | None:
    """Return the training minutes of all members, or of the one member that a predictor is; None: some are unknown."""
    members = member_run_dirs(folder, config)
    if predictor.startswith("member/"):
        member_name = predictor.removeprefix("member/").partition("+")[0]
        # A group of folds or bags predicts held-out samples together; MEMBER.2 is a snapshot of a member.
        named = held_out_groups(config).get(member_name, (member_name, member_name.rpartition(".")[0]))
        members = {name: member for name, member in members.items() if name in named}
    results = [member.result for member in members.values()]
    minutes = [result.get("train_minutes") for result in results if result is not None]
    numbers = [float(value) for value in minutes if isinstance(value, int | float)]
    return round(sum(numbers), 3) if numbers and len(numbers) == len(minutes) else None
