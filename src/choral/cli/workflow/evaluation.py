"""Evaluation: the ledgers of a run, the images of the worst predictions, and what W&B gets of them."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import replace

from choral.cli.workflow.launch import gpus, launch
from choral.cli.workflow.scores import score
from choral.config import Config
from choral.core.errors import ChoralError
from choral.core.files import sha256_of
from choral.data.shards.index import Dataset
from choral.deploy.bundle.read import read_bundle
from choral.ensembles.missing_members import absent_members, how_many
from choral.inference.assembled_run import bundle_of
from choral.inference.evaluation_plan import evaluation_of, plan_evaluation
from choral.inference.evaluation_request import Request
from choral.inference.external_data import index_of
from choral.inference.ledger import Ledger
from choral.inference.trained_models import find_trained_models, is_assembled, member_run_dirs
from choral.runs.run_dir import RunDir, read_json, write_json
from choral.scoring.policy import write_answer
from choral.scoring.scoreboard.recording import record_steps


def evaluate(request: Request, processes: int) -> int:
    """Write the ledgers of a run through the launcher, sharing this terminal, and return the exit status.

    Without a number of processes: all GPUs, or a rank for each of up to four cores.

    Raises:
        ConfigError, DataError: found before anything is started.
    """
    folder, config = request.folder, request.config()
    if is_assembled(folder):
        names = ", ".join(member_run_dirs(folder, config))
        print(f"{folder.path}: one ensemble of {names}", file=sys.stderr)
    if request.unfinished:
        print(f"not trained, and left out: {', '.join(request.unfinished)}", file=sys.stderr)
    plan = plan_evaluation(config, folder, Dataset.open(config.data.shards), request.data_name)
    if not request.force and not plan.missing():
        print(f"{folder.path}: already evaluated", file=sys.stderr)
    else:
        if not processes and not gpus():
            processes = min(4, len(os.sched_getaffinity(0)))  # ranks scale better than threads, and change no figure
        code = launch("choral.inference", request.words, processes, folder)
        if code:
            return code
    _answer_as_bundle(request)
    for split in plan.ledgers:
        record_steps(folder, folder.config(), split)
    show_evaluation(config, folder, plan.judged)
    say_absent(folder, config)
    if plan.suffix:
        for split in plan.judged:
            print(f"Other data than the run's own: choral score {folder.name} --split {split}", file=sys.stderr)
    return 0


def record_evaluation(request: Request) -> None:
    """Append to the scoreboard what was evaluated by ranks that somebody else started."""
    config = request.config()
    plan = plan_evaluation(config, request.folder, Dataset.open(config.data.shards), request.data_name)
    _answer_as_bundle(request)
    for split in plan.ledgers:
        record_steps(request.folder, request.folder.config(), split)


def _answer_as_bundle(request: Request) -> None:
    """Let a run that was assembled of a bundle alone answer as that does, so that `choral score` says what it is worth."""
    bundle = bundle_of(request.folder)
    if bundle is None:
        return
    models, _ = find_trained_models(request.folder, request.folder.config())
    evaluation = evaluation_of(models, request.config().train.precision)
    write_answer(request.folder, replace(read_bundle(bundle).answering, evaluation=evaluation))


def show_evaluation(config: Config, folder: RunDir, splits: Sequence[str] = ()) -> None:
    """Write the images of the worst predictions into the run folder, and send them and the scores to W&B.

    What is there, or was sent, is left; an earlier start may have been killed before. What goes wrong is told and left.
    Of the given ledgers; none: of those of `evaluate.splits`.
    """
    from choral.ensembles.worst_samples import keep_worst

    for split in (splits or config.evaluate.splits) if config.tracking.worst_images > 0 else ():
        try:
            ledger = Ledger.open(folder.predictions / f"{split}.parquet")
            index = index_of(folder, config, split)
            keep_worst(ledger, index, config.tracking.worst_images, folder.path / f"worst-{split}")
        except (ChoralError, OSError) as error:
            print(f"the worst predictions of split {split} are not shown: {error}", file=sys.stderr)
    if config.tracking.wandb != "off":
        track_evaluation(config, folder, splits)


def track_evaluation(config: Config, folder: RunDir, splits: Sequence[str] = ()) -> None:
    """Send the table of scores and the images of the worst predictions to W&B; what goes wrong is told and left.

    RUN/wandb-evaluation.json says which ledgers were sent where, so that each is sent once, by whichever call can.
    """
    from choral.ensembles.worst_samples import worst_pictures
    from choral.tracking.wandb_run import WandbRun

    mark, tracking = folder.path / "wandb-evaluation.json", config.tracking
    ledgers = {split: folder.predictions / f"{split}.parquet" for split in splits or config.evaluate.splits}
    target = f"{tracking.wandb} {tracking.entity or ''}/{tracking.project}/{tracking.group or ''}"
    run: WandbRun | None = None
    try:
        sent = read_json(mark) or {}
        due = {split: f"{sha256_of(path)} to {target}" for split, path in ledgers.items()}
        if due.items() <= sent.items():
            return
        run = WandbRun(config, folder, "evaluation")
        for split in due:
            index = index_of(folder, config, split)
            pictures = worst_pictures(Ledger.open(ledgers[split]), index, tracking.worst_images, config.data.max_pixels)
            run.show(split, score(folder, split)["rows"], pictures)
        run.close(failed=False)
        if run.took_all:
            write_json(mark, {**sent, **due})
    except Exception as error:  # a tracker must never cost an evaluation
        print(f"W&B does not get the evaluation: {type(error).__name__}: {error}", file=sys.stderr)
        if run is not None:
            run.close(failed=True)


def say_absent(folder: RunDir, config: Config) -> None:
    """Say on stderr which members are not trained, if any."""
    if words := how_many(len(member_run_dirs(folder, config)), absent_members(folder, config)):
        print(words, file=sys.stderr)
