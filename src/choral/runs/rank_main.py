"""What the main modules of ranks share: their `Runtime`, the lock of the run folder, and errors in one line each."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING

from choral.config import Config
from choral.core.errors import ChoralError
from choral.runs.run_dir import RunDir

if TYPE_CHECKING:
    from choral.core.process_group import Runtime


def as_rank(config: Config, folder: RunDir, work: Callable[[Runtime], None]) -> int:
    """Do the work of this process, one of those that the launcher started, on a run, and return its exit status."""

    def start() -> Runtime:
        from choral.core.process_group import Runtime

        return Runtime(config.train.precision, 1, config.train.timeout_s, folder.stop_file)

    def locked(run: Runtime) -> None:
        with folder.lock() if run.is_main else nullcontext():
            work(run)

    return from_start_to_end(start, locked)


def from_start_to_end(start: Callable[[], Runtime], work: Callable[[Runtime], None]) -> int:
    """Start this process's rank, do its work, end it, and return its exit status."""
    from choral.core.process_group import set_up_logging

    run: Runtime | None = None
    try:
        run = start()
        set_up_logging(run.rank)
        work(run)
    except ChoralError as error:
        prefix = "error" if run is None or run.is_main else f"error on rank {run.rank}"
        print(f"{prefix}: {error}", file=sys.stderr)
        return error.exit_code
    finally:
        if run is not None:
            run.end()
    return 0
