"""The main function of a rank: creates its `Runtime`, locks the run directory, and prints errors on one line."""

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


def run_rank(config: Config, run_dir: RunDir, work: Callable[[Runtime], None]) -> int:
    """Run `work` on this rank, with the run directory locked by the main rank, and return the exit status."""

    def start() -> Runtime:
        from choral.core.process_group import Runtime

        return Runtime(config.train.precision, 1, config.train.timeout_s, run_dir.stop_file)

    def locked(runtime: Runtime) -> None:
        with run_dir.lock() if runtime.is_main else nullcontext():
            work(runtime)

    return run_with_runtime(start, locked)


def run_with_runtime(start: Callable[[], Runtime], work: Callable[[Runtime], None]) -> int:
    """Create the `Runtime` of this rank, run `work`, end the runtime, and return the exit status."""
    from choral.core.process_group import set_up_logging

    runtime: Runtime | None = None
    try:
        runtime = start()
        set_up_logging(runtime.rank)
        work(runtime)
    except ChoralError as error:
        prefix = "error" if runtime is None or runtime.is_main else f"error on rank {runtime.rank}"
        print(f"{prefix}: {error}", file=sys.stderr)
        return error.exit_code
    finally:
        if runtime is not None:
            runtime.end()
    return 0
