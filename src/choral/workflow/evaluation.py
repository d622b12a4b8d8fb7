"""Evaluation: the ledgers of a run, the images of the worst predictions, and what W&B gets of them."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from choral.assess.recording import record_steps
from choral.config import Config
from choral.ensemble.absent import absent_members, how_many
from choral.errors import ChoralError
from choral.files import sha256_of
from choral.predict.__main__ import evaluation_config
from choral.predict.ledger import Ledger
from choral.predict.plan import plan_evaluation
from choral.predict.voices import member_folders
from choral.runfolder import RunFolder, read_json, write_json
from choral.shards.index import Dataset, Index
from choral.workflow.launching import gpus, launch
from choral.workflow.scoring import score


def evaluate(folder: RunFolder, overrides: Sequence[str], processes: int, force: bool) -> int:
    """Write the ledgers of a run through the launcher, sharing this terminal, and return the exit status.

    Without a number of processes: all GPUs, or a rank for each of up to four cores.

    Raises:
        ConfigError, DataError: found before anything is started.
    """
    config = evaluation_config(folder, overrides)
    plan = plan_evaluation(config, folder, Dataset.open(config.data.shards))
    if not force and not plan.missing():
        print(f"{folder.path}: already evaluated", file=sys.stderr)
    else:
        arguments = [str(folder.path), *overrides, *(["--force"] if force else [])]
        if not processes and not gpus():
            processes = min(4, len(os.sched_getaffinity(0)))  # ranks scale better than threads, and change no figure
        code = launch("choral.predict", arguments, processes, folder)
        if code:
            return code
    for split in config.evaluate.splits:
        record_steps(folder, folder.config(), split)
    show_evaluation(config, folder)
    say_absent(folder, config)
    return 0


def show_evaluation(config: Config, folder: RunFolder) -> None:
    """Write the images of the worst predictions into the run folder, and send them and the scores to W&B.

    What is there, or was sent, is left; an earlier start may have been killed before. What goes wrong is told and left.
    """
    from choral.ensemble.worst import keep_worst

    for split in config.evaluate.splits if config.tracking.worst_images > 0 else ():
        try:
            ledger = Ledger.open(folder.predictions / f"{split}.parquet")
            index = Index.open(Dataset.open(config.data.shards), split)
            keep_worst(ledger, index, config.tracking.worst_images, folder.path / f"worst-{split}")
        except (ChoralError, OSError) as error:
            print(f"the worst predictions of split {split} are not shown: {error}", file=sys.stderr)
    if config.tracking.wandb != "off":
        track_evaluation(config, folder)


def track_evaluation(config: Config, folder: RunFolder) -> None:
    """Send the table of scores and the images of the worst predictions to W&B; what goes wrong is told and left.

    RUN/wandb-evaluation.json says which ledgers were sent where, so that each is sent once, by whichever call can.
    """
    from choral.ensemble.worst import worst_pictures
    from choral.tracking.wandb_run import WandbRun

    mark, tracking = folder.path / "wandb-evaluation.json", config.tracking
    ledgers = {split: folder.predictions / f"{split}.parquet" for split in config.evaluate.splits}
    target = f"{tracking.wandb} {tracking.entity or ''}/{tracking.project}/{tracking.group or ''}"
    run: WandbRun | None = None
    try:
        sent = read_json(mark) or {}
        due = {split: f"{sha256_of(path)} to {target}" for split, path in ledgers.items()}
        if due.items() <= sent.items():
            return
        run = WandbRun(config, folder, "evaluation")
        for split in due:
            index = Index.open(Dataset.open(config.data.shards), split)
            pictures = worst_pictures(Ledger.open(ledgers[split]), index, tracking.worst_images, config.data.max_pixels)
            run.show(split, score(folder, split)["rows"], pictures)
        run.close(failed=False)
        if run.took_all:
            write_json(mark, {**sent, **due})
    except Exception as error:  # a tracker must never cost an evaluation
        print(f"W&B does not get the evaluation: {type(error).__name__}: {error}", file=sys.stderr)
        if run is not None:
            run.close(failed=True)


def say_absent(folder: RunFolder, config: Config) -> None:
    """Say on stderr which members are not trained, if any."""
    if words := how_many(len(member_folders(folder, config)), absent_members(folder, config)):
        print(words, file=sys.stderr)
