"""`accelerate launch -m choral.predict RUN [key=value ...]`: write a run's ledger on the ranks that the launcher starts."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext

from choral.config import Config, binding_difference
from choral.configfile import parse_override, with_overrides
from choral.errors import ChoralError, ConfigError
from choral.runfolder import RunFolder


def main(arguments: Sequence[str] | None = None) -> int:
    """Evaluate as the command line says, and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="accelerate launch launch/evaluate.py",
        description="Write a run's ledger. Example: accelerate launch launch/evaluate.py elpv-demo evaluate.views=d4",
    )
    parser.add_argument("run", help="a run folder, the name of one under runs/, or its config file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of the evaluate and data sections")
    parser.add_argument("--force", action="store_true", help="evaluate again what is there")
    options = parser.parse_intermixed_args(arguments)
    rank = int(os.environ.get("RANK", "0"))  # set by the launcher; needed before there is a process group
    try:
        folder = RunFolder.find(options.run)
        config = evaluation_config(folder, options.overrides)
    except ChoralError as error:
        if rank == 0:  # every rank finds the same; once is enough
            print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return _evaluate(config, folder, options.force)


def evaluation_config(folder: RunFolder, overrides: Sequence[str]) -> Config:
    """Return the config of a run with another way to evaluate.

    Raises:
        ConfigError: an override that would have changed the training.
    """
    config = folder.config()
    changed = with_overrides(config, dict(parse_override(text) for text in overrides), where=str(folder.path))
    allowed = ("evaluate.", "train.precision:", "data.shards:", "data.on_bad_sample:", "data.max_bad_fraction:")
    for line in binding_difference(config, changed):
        if not line.startswith(allowed):
            raise ConfigError(
                f"{line}: an evaluation changes evaluate.*, train.precision and data.shards; for the rest, train another run"
            )
    return changed


def _evaluate(config: Config, folder: RunFolder, force: bool) -> int:
    from choral.predict.evaluate import evaluate
    from choral.runtime import Runtime, set_up_logging

    run: Runtime | None = None
    try:
        run = Runtime(config.train.precision, 1, config.train.timeout_s, folder.stop_file)
        set_up_logging(run.rank)
        with folder.lock() if run.is_main else nullcontext():
            evaluate(config, folder, run, force)
    except ChoralError as error:
        prefix = "error" if run is None or run.is_main else f"error on rank {run.rank}"
        print(f"{prefix}: {error}", file=sys.stderr)
        return error.exit_code
    finally:
        if run is not None:
            run.end()
    return 0


if __name__ == "__main__":
    sys.exit(main())
