"""`accelerate launch -m choral.training CONFIG [key=value ...]`: train one network on the ranks that the launcher starts."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from choral.config import Config
from choral.config.files import load_config
from choral.core.errors import ChoralError, ConfigError, DataError, OutOfMemory, Stopped
from choral.data.augment.host_transforms import check_host_transforms
from choral.data.loading.boosting_weights import why_not_trained
from choral.data.loading.resampling import select
from choral.data.loading.targets import Targets
from choral.data.shards.index import Dataset, Index
from choral.runs.run_dir import RunDir
from choral.tracking.sweep import named_by_sweep
from choral.tracking.tensorboard import check_installed


def main(arguments: Sequence[str] | None = None) -> int:
    """Train as the command line says, and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="accelerate launch launch/train.py",
        description="Train one network, or continue it. Example: accelerate launch launch/train.py cells.yaml train.lr=1e-3",
    )
    parser.add_argument("config", help="a YAML file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as train.lr=3e-4")
    parser.add_argument("--folder", type=Path, help="the run folder, instead of runs/NAME")
    options = parser.parse_intermixed_args(arguments)
    rank = int(os.environ.get("RANK", "0"))  # set by the launcher; needed before there is a process group
    try:
        config = load_config(options.config, options.overrides)
        if not options.folder:
            config = named_by_sweep(config)
        folder = RunDir(options.folder) if options.folder else RunDir.of(config)
        folder.check_same(config)
        if folder.result is not None:
            if rank == 0:
                print(f"{folder.path}: already trained", file=sys.stderr)
            return 0
        if reason := why_not_trained(config.data.resample, folder):
            if rank == 0:
                print(f"{folder.path}: not trained: {reason}", file=sys.stderr)
            return 0
        preflight(config)
    except ChoralError as error:
        if rank == 0:  # every rank finds the same; once is enough
            print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return _train(config, folder)


def preflight(config: Config) -> None:
    """Find what would fail later: missing or damaged shards, unknown splits, another task, too few samples, host transforms.

    torch is not imported, unless host transforms are named: Albumentations needs it.

    Raises:
        ConfigError, DataError: naming the folder, shard, split, column or key.
    """
    if config.tracking.tensorboard:
        check_installed()
    dataset = Dataset.open(Path(config.data.shards))
    dataset.verify_present()
    for split in (config.data.train_split, config.data.val_split):
        index = Index.open(dataset, split)
        targets = Targets.open(config, index)
        if not len(index):
            raise DataError(f"{dataset.folder}: split '{split}' is empty; pack again with another --val or --test")
        training = split == config.data.train_split
        selection = select(config.data.resample, index) if training else None
        rows = None if selection is None else selection.rows % len(index)
        if config.task == "multilabel" and not any(block.any() for block in targets.blocks(rows)):
            raise DataError(
                f"{dataset.folder}: no sample of split '{split}' has any label: nothing can be learnt from it, nor measured; "
                "give it some, or pack with another --seed"
            )
        if training:
            samples = len(index) if rows is None else len(rows)
    if config.train.batch_size > samples:
        resample = config.data.resample
        which = f" of {resample.kind} {resample.number + 1}" if resample.kind in ("fold", "bag") else ""
        raise ConfigError(
            f"train.batch_size: {config.train.batch_size} is more than the {samples} training samples{which}"
        )
    kind, _, place = config.model.weights.partition(":")
    if kind == "file" and not Path(place).is_file():
        raise ConfigError(f"model.weights: {place}: no such file")
    check_host_transforms(config.augment.host, config.data.image_size)


def _train(config: Config, folder: RunDir) -> int:
    from choral.core.process_group import Runtime, set_up_logging  # torch only now: a misspelt key is told at once
    from choral.training.loop import train

    settings = config.train
    try:
        run = Runtime(
            settings.precision,
            1 if settings.accumulate_steps == "auto" else settings.accumulate_steps,
            settings.timeout_s,
            folder.stop_file,
            bucket_mib=settings.ddp_bucket_mib,
            static_graph=settings.ddp_static_graph,
            compression=settings.gradient_compression,
        )
    except ChoralError as error:
        if int(os.environ.get("RANK", "0")) == 0:
            print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    set_up_logging(run.rank)
    try:
        if run.is_main:
            with folder.lock():
                folder.claim(config)
                _with_status(folder, lambda: train(config, folder, run))
        else:
            train(config, folder, run)
    except ChoralError as error:
        if run.is_main:
            print(f"error: {error}", file=sys.stderr)
        elif isinstance(error, DataError | OutOfMemory):  # the kinds that a single rank can meet
            print(f"error on rank {run.rank}: {error}", file=sys.stderr)
        return error.exit_code
    finally:
        run.end()
    return 0


def _with_status(folder: RunDir, work: Callable[[], object]) -> None:
    """Run `work` and leave in status.json how it ended; launchers lose exit statuses, the folder does not."""
    try:
        work()
    except Stopped as stopped:
        folder.report(**{**folder.status, "state": "stopped", "reason": str(stopped)})
        raise
    except BaseException as error:
        folder.report(**{**folder.status, "state": "failed", "reason": f"{type(error).__name__}: {error}"})
        raise
    folder.report(**{**folder.status, "state": "done"})


if __name__ == "__main__":
    sys.exit(main())
