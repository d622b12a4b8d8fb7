"""The stage evaluate: prediction ledgers, images of the worst predictions, and their upload to W&B."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import replace

from choral.cli.workflow.launch import gpus, launch
from choral.cli.workflow.scores import score
from choral.config import Config
from choral.core.errors import ChoralError
from choral.core.files import compute_sha256
from choral.data.shards.index import Dataset
from choral.deploy.bundle.read import read_bundle
from choral.ensembles.missing_members import describe_missing_members, find_missing_members
from choral.inference.assembled_run import find_source_bundle
from choral.inference.evaluation_plan import compute_evaluation_hash, plan_evaluation
from choral.inference.evaluation_request import EvaluationRequest
from choral.inference.external_data import open_ledger_index
from choral.inference.ledger import Ledger
from choral.inference.models_file import is_assembled
from choral.inference.run_models import find_trained_models, member_run_dirs
from choral.runs.run_dir import RunDir, read_json, write_json
from choral.scoring.policy import write_policy
from choral.scoring.scoreboard.recording import record_steps


def evaluate(request: EvaluationRequest, processes: int) -> int:
    """Predict the requested splits on this machine's ranks, write the ledgers, and return the exit status.

    Args:
        request: the run, splits, views and data.
        processes: ranks; 0: one per GPU, or without GPUs one per core, at most four.

    Raises:
        ConfigError, DataError: raised before anything is started.
    """
    folder, config = request.run_dir, request.config()
    if is_assembled(folder):
        names = ", ".join(member_run_dirs(folder, config))
        print(f"{folder.path}: one ensemble of {names}", file=sys.stderr)
    if request.unfinished:
        print(f"skipped, not trained yet: {', '.join(request.unfinished)}", file=sys.stderr)
    plan = plan_evaluation(config, folder, Dataset.open(config.data.shards), request.data_name)
    if not request.force and not plan.missing():
        print(f"{folder.path}: already evaluated", file=sys.stderr)
    else:
        if not processes and not gpus():
            processes = min(4, len(os.sched_getaffinity(0)))  # ranks scale better than threads; results are the same
        code = launch("choral.inference", request.arguments, processes, folder)
        if code:
            return code
    _use_bundle_policy(request)
    for split in plan.ledgers:
        record_steps(folder, folder.config(), split)
    publish_evaluation(config, folder, plan.common_ledgers)
    report_missing_members(folder, config)
    if plan.suffix:
        for split in plan.common_ledgers:
            print(f"Scores on these data: choral score {folder.name} --split {split}", file=sys.stderr)
    return 0


def record_evaluation(request: EvaluationRequest) -> None:
    """Append an evaluation to the scoreboard; its ranks were started by another launcher."""
    config = request.config()
    plan = plan_evaluation(config, request.run_dir, Dataset.open(config.data.shards), request.data_name)
    _use_bundle_policy(request)
    for split in plan.ledgers:
        record_steps(request.run_dir, request.run_dir.config(), split)


def _use_bundle_policy(request: EvaluationRequest) -> None:
    """Give a run that was assembled from one bundle the policy of that bundle, so that `choral score` evaluates it."""
    bundle = find_source_bundle(request.run_dir)
    if bundle is None:
        return
    models, _ = find_trained_models(request.run_dir, request.run_dir.config())
    evaluation = compute_evaluation_hash(models, request.config().train.precision)
    write_policy(request.run_dir, replace(read_bundle(bundle).policy, evaluation=evaluation))


def publish_evaluation(config: Config, folder: RunDir, splits: Sequence[str] = ()) -> None:
    """Write the images of the worst predictions into the run directory, and upload them and the scores to W&B.

    Files and uploads of an earlier call are kept. Errors are reported and do not fail the evaluation.

    Args:
        config, folder: the run.
        splits: names of ledgers; empty: those of `evaluate.splits`.
    """
    from choral.ensembles.worst_samples import write_worst_images

    for split in (splits or config.evaluate.splits) if config.tracking.worst_images > 0 else ():
        try:
            ledger = Ledger.open(folder.predictions / f"{split}.parquet")
            index = open_ledger_index(folder, config, split)
            write_worst_images(ledger, index, config.tracking.worst_images, folder.path / f"worst-{split}")
        except (ChoralError, OSError) as error:
            print(f"the images of the worst predictions of split {split} were not written: {error}", file=sys.stderr)
    if config.tracking.wandb != "off":
        upload_evaluation(config, folder, splits)


def upload_evaluation(config: Config, folder: RunDir, splits: Sequence[str] = ()) -> None:
    """Upload the table of scores and the images of the worst predictions to W&B; errors are reported, not raised.

    RUN/wandb-evaluation.json lists the ledgers that were uploaded and where, so that each is uploaded once.
    """
    from choral.ensembles.worst_samples import load_worst_images
    from choral.tracking.wandb_run import WandbRun

    uploads_file, tracking = folder.path / "wandb-evaluation.json", config.tracking
    ledgers = {split: folder.predictions / f"{split}.parquet" for split in splits or config.evaluate.splits}
    target = f"{tracking.wandb} {tracking.entity or ''}/{tracking.project}/{tracking.group or ''}"
    run: WandbRun | None = None
    try:
        uploaded = read_json(uploads_file) or {}
        pending = {split: f"{compute_sha256(path)} to {target}" for split, path in ledgers.items()}
        if pending.items() <= uploaded.items():
            return
        run = WandbRun(config, folder, "evaluation")
        for split in pending:
            index = open_ledger_index(folder, config, split)
            pictures = load_worst_images(
                Ledger.open(ledgers[split]), index, tracking.worst_images, config.data.max_pixels
            )
            run.log_evaluation(split, score(folder, split)["rows"], pictures)
        run.close(failed=False)
        if run.is_healthy:
            write_json(uploads_file, {**uploaded, **pending})
    except Exception as error:  # a tracker must never cost an evaluation
        print(f"the evaluation was not uploaded to W&B: {type(error).__name__}: {error}", file=sys.stderr)
        if run is not None:
            run.close(failed=True)


def report_missing_members(folder: RunDir, config: Config) -> None:
    """Print on stderr which members are not trained, if any, and why."""
    members = member_run_dirs(folder, config)
    if report := describe_missing_members(len(members), find_missing_members(folder, config)):
        print(report, file=sys.stderr)
