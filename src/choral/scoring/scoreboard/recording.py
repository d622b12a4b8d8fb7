"""What an evaluation leaves on the scoreboard: of each run a few predictors that stand for its steps."""

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
from choral.ensembles.fitting_data import known_of
from choral.ensembles.member_predictions import MemberPredictions
from choral.ensembles.score_rows import numbers, scored_views
from choral.inference.ledger import Ledger
from choral.inference.trained_models import member_run_dirs
from choral.metrics.per_sample import label_log_losses, log_losses
from choral.runs.run_dir import RunDir
from choral.scoring.predictor import COMBINED, evaluated, predictor_names, predictor_of
from choral.scoring.scoreboard.board import Entry, Scoreboard, digest_of
from choral.scoring.scoreboard.test_set_uses import look_at, run_of, scoreboard_of
from choral.scoring.stored_predictor import Record, Samples, estimates_of

_ANSWER = "answer"  # what `choral calibrate` made of others
_FITTED = {"soft+learned": "+learned", "mean+learned": "+learned", _ANSWER: "+calibrated"}


def record_steps(folder: RunDir, config: Config, split: str, *further: str) -> None:
    """Append what a run was evaluated to on a split to the scoreboard of its project, and count the look at it.

    Of several members these are one of them, which validation likes best, their vote, and that over test-time views; of one
    network it, without and with views; then what has been learned or calibrated. The training split is not recorded, but
    for what is said of its samples by networks that have not seen them.
    What goes wrong is said on stderr: a scoreboard must never cost an evaluation.

    Args:
        folder, config: of the run.
        split: that has been evaluated.
        further: names of predictors that are recorded as well, such as combined/NAME.
    """
    if split == config.data.train_split:
        return
    with _told(folder, split):
        ledger = evaluated(folder, config, split)
        if len(ledger):
            steps = steps_of(folder, config, ledger)
            names = sorted(dict.fromkeys([*steps, *further]), key=lambda name: name == _ANSWER)
            _append(folder, config, ledger, names)


def record_combination(folder: RunDir, config: Config, split: str, name: str) -> None:
    """Append a combination alone, called `name`: of large ledgers it costs one column, where all steps cost all.

    What goes wrong is said on stderr, as in `record_steps`.
    """
    with _told(folder, split):
        _append(folder, config, evaluated(folder, config, split), [f"{COMBINED}{name}"])


@contextlib.contextmanager
def _told(folder: RunDir, split: str) -> Iterator[None]:
    try:
        yield
    except (ChoralError, OSError) as error:
        print(f"the scoreboard is without split {split} of {folder.path}: {error}", file=sys.stderr)


def project_of(config: Config) -> str:
    """Return the project whose scoreboard a run is on: as configured, else the name of the data set, or of its folder."""
    if config.project:
        return config.project
    try:
        name = Dataset.open(config.data.shards).name
    except DataError:  # the data may be elsewhere by now
        name = Path(config.data.shards).absolute().name
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._") or "data"


def steps_of(folder: RunDir, config: Config, ledger: Ledger) -> list[str]:
    """Return the names of the predictors that stand for the steps of an evaluated run, each adding to the one before."""
    suffixes = [suffix for _, suffix in scored_views(ledger)]
    first = f"member/{_likeliest(folder, config, ledger)}"
    names = [f"{first}{suffixes[0]}"]
    vote = first
    if len(ledger.members) > 1:
        vote = "mean" if ledger.meta.task == "regression" else "soft"
        names.append(f"{vote}{suffixes[0]}")
    names += [f"{vote}{suffix}" for suffix in suffixes[1:]]
    there = predictor_names(folder, config, ledger.meta.split)
    return names + [name for name in _FITTED if name in there]


def part_of(predictor: str, first: str) -> str:
    """Return what a predictor is called below the step of its run: what was added to the first one, "" for that itself."""
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


def _likeliest(folder: RunDir, config: Config, ledger: Ledger) -> str:
    """Return the member of the lowest loss on validation; without that, the first: none is chosen by what is scored."""
    validation = known_of(folder, config, ledger).validation
    view = scored_views(ledger)[0][0]
    if len(ledger.members) == 1 or validation is None or view not in validation.views:
        return ledger.members[0]
    sums = np.zeros(len(ledger.members))
    for labels, stack in MemberPredictions(validation, ledger.members, (view,)).blocks():
        sums += [_losses(ledger.meta.task, labels, said).sum() for said in stack]
    return ledger.members[int(sums.argmin())]


def _losses(task: str, labels: NDArray[np.float32], said: NDArray[np.float32]) -> NDArray[np.float64]:
    if task == "multiclass":
        return log_losses(labels.astype(np.int64), said)
    if task == "multilabel":
        return label_log_losses(labels > 0, said)
    errors: NDArray[np.float64] = ((said.astype(np.float64) - labels) ** 2).mean(axis=1)
    return errors


def _append(folder: RunDir, config: Config, ledger: Ledger, names: Sequence[str]) -> None:
    """Append those that are not there yet; predictions are held one predictor at a time."""
    meta, samples = ledger.meta, Samples.of(ledger)
    data = samples.digest(meta.dataset, meta.split, meta.task, meta.classes)
    board = Scoreboard(scoreboard_of(folder) / project_of(config))
    run, step, now = run_of(folder), config.step or folder.name, datetime.now(UTC).isoformat(timespec="seconds")
    known = board.known(run).values()
    there = {entry.said for entry in known if (entry.run, entry.step) == (run, step) and board.holds(entry)}
    identities: dict[str, str] = {}
    records: dict[str, Record] = {}
    decided: set[str] = set()
    for name in names:
        source = _source(ledger, name)
        if source and digest_of(name, data, source) in there:
            continue
        predictor = predictor_of(folder, config, meta.split, name)
        look_at(folder, config, [predictor])
        records[name] = Record.of(predictor)
        if (
            meta.task == "multiclass" and predictor.decided is not None
        ):  # of labels the metrics here are of probabilities
            decided.add(name)
        identities[name] = digest_of(name, data, source or records[name].digest)
    estimates = estimates_of(meta.task, ledger.labels, records)
    for name, record in records.items():
        entry = Entry(
            id=digest_of(run, identities[name]),
            said=identities[name],
            step=step,
            part="+decided" if name in decided else part_of(name, names[0]),
            run=run,
            predictor=name,
            members=ledger.members,
            split=meta.split,
            dataset=meta.dataset,
            data=data,
            task=meta.task,
            classes=meta.classes,
            samples=len(ledger),
            metrics={metric: numbers(found[name].interval) for metric, found in estimates.items() if name in found},
            minutes=_minutes(folder, config, name),
            config=config_hash(config),
            date=now,
            record="",
        )
        board.append(entry, record, samples)


def _source(ledger: Ledger, name: str) -> str:
    """Return what the predictions of a member or a plain mean come from: weights, views and the rest; "": not known.

    They are known by it rather than by their digits, which may differ in the last place from one kind of device to another.
    """
    meta = ledger.meta
    if not meta.evaluation or not re.fullmatch(r"(member/[^/]*|soft|mean)(\+tta)?", name):
        return ""
    return json.dumps([meta.evaluation, meta.members, meta.tta_views, meta.average])


def _minutes(folder: RunDir, config: Config, predictor: str) -> float | None:
    """Return the minutes of training of all members, or of the one that a predictor is; None: one is not known."""
    members = member_run_dirs(folder, config)
    if predictor.startswith("member/"):
        own = predictor.removeprefix("member/").partition("+")[0]
        # A group of folds or bags has answered for held-out samples; MEMBER.2 is a snapshot of a member.
        named = held_out_groups(config).get(own, (own, own.rpartition(".")[0]))
        members = {name: member for name, member in members.items() if name in named}
    results = [member.result for member in members.values()]
    minutes = [result.get("train_minutes") for result in results if result is not None]
    known = [float(value) for value in minutes if isinstance(value, int | float)]
    return round(sum(known), 3) if known and len(known) == len(minutes) else None
