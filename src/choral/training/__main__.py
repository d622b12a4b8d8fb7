"""`accelerate launch -m choral.training CONFIG [key=value ...]`: train one model on the ranks that the launcher starts.

The calls go down: `main` reads the config and checks it, `train` (loop.py) decides what happens at which step, `Trainer`
(trainer.py) makes one optimizer step.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from choral.config import Config
from choral.config.files import load_config
from choral.core.errors import ChoralError, DataError, OutOfMemory, Stopped
from choral.data.loading.boosting_weights import reason_not_trained
from choral.runs.run_dir import RunDir
from choral.tracking.sweep import with_sweep_run_name
from choral.training.preflight import preflight

if TYPE_CHECKING:
    from choral.core.process_group import Runtime


def main(arguments: Sequence[str] | None = None) -> int:
    """Train as the command line says, and return the exit status: 0 done, 1 failed, 2 usage, 75 stopped, start again."""
    parser = argparse.ArgumentParser(
        prog="accelerate launch launch/train.py",
        description="Train one model, or resume its training. "
        "Example: accelerate launch launch/train.py cells.yaml train.lr=1e-3",
    )
    parser.add_argument("config", help="a YAML file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as train.lr=3e-4")
    parser.add_argument("--folder", type=Path, help="the run directory (default: runs/NAME)")
    options = parser.parse_intermixed_args(arguments)
    is_main_rank = os.environ.get("RANK", "0") == "0"  # set by the launcher; there is no process group yet
    try:
        config = load_config(options.config, options.overrides)
        if options.folder:
            run_dir = RunDir(options.folder)
        else:
            config = with_sweep_run_name(config)
            run_dir = RunDir.from_config(config)
        run_dir.check_same_config(config)
        if reason := _reason_to_skip(config, run_dir):
            if is_main_rank:
                print(f"{run_dir.path}: {reason}", file=sys.stderr)
            return 0
        preflight(config)
    except ChoralError as error:
        if is_main_rank:  # every rank meets the same error; one message is enough
            print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return _train_on_rank(config, run_dir, is_main_rank)


def _reason_to_skip(config: Config, run_dir: RunDir) -> str:
    """Return why there is nothing to train; "" if there is."""
    if run_dir.result is not None:
        return "already trained"
    reason = reason_not_trained(config.data.resample, run_dir)
    return f"not trained: {reason}" if reason else ""


def _train_on_rank(config: Config, run_dir: RunDir, is_main_rank: bool) -> int:
    """Train as one rank of the launcher's, and return the exit status."""
    from choral.core.process_group import set_up_logging  # imports torch: not before the config has been checked
    from choral.training.loop import train

    try:
        runtime = _start_runtime(config, run_dir)
    except ChoralError as error:
        if is_main_rank:
            print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    set_up_logging(runtime.rank)
    try:
        if runtime.is_main:
            with run_dir.lock():
                run_dir.store_config(config)
                _record_outcome(run_dir, lambda: train(config, run_dir, runtime))
        else:
            train(config, run_dir, runtime)
    except ChoralError as error:
        if runtime.is_main:
            print(f"error: {error}", file=sys.stderr)
        elif isinstance(error, DataError | OutOfMemory):  # errors that a single rank can meet
            print(f"error on rank {runtime.rank}: {error}", file=sys.stderr)
        return error.exit_code
    finally:
        runtime.end()
    return 0


def _start_runtime(config: Config, run_dir: RunDir) -> Runtime:
    from choral.core.process_group import Runtime

    train = config.train
    return Runtime(
        train.precision,
        1 if train.accumulate_steps == "auto" else train.accumulate_steps,
        train.timeout_s,
        run_dir.stop_file,
        bucket_mib=train.ddp_bucket_mib,
        static_graph=train.ddp_static_graph,
        compression=train.gradient_compression,
    )


def _record_outcome(run_dir: RunDir, work: Callable[[], object]) -> None:
    """Run `work` and write to status.json how it ended: launchers lose exit statuses, the run directory does not."""
    try:
        work()
    except Stopped as stopped:
        run_dir.write_status(**{**run_dir.status, "state": "stopped", "reason": str(stopped)})
        raise
    except BaseException as error:
        run_dir.write_status(**{**run_dir.status, "state": "failed", "reason": f"{type(error).__name__}: {error}"})
        raise
    run_dir.write_status(**{**run_dir.status, "state": "done"})


if __name__ == "__main__":
    sys.exit(main())
