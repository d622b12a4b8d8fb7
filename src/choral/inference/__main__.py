"""`accelerate launch -m choral.inference RUN|CHECKPOINT... [key=value ...]`: write ledgers on the ranks that the launcher
starts."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence

from choral.config import Config
from choral.core.errors import ChoralError
from choral.inference.evaluation_request import Request, add_arguments, request_of
from choral.runs.rank_main import as_rank


def main(arguments: Sequence[str] | None = None, after: Callable[[Request], None] | None = None) -> int:
    """Evaluate as the command line says, and return the exit status; what comes after it is called on the main rank."""
    parser = argparse.ArgumentParser(
        prog="accelerate launch launch/evaluate.py",
        description="Write a run's ledger, or that of several runs and checkpoints together. "
        "Example: accelerate launch launch/evaluate.py elpv-demo --split test --views d4",
    )
    add_arguments(parser)
    options = parser.parse_intermixed_args(arguments)
    rank = int(os.environ.get("RANK", "0"))  # set by the launcher; needed before there is a process group
    try:
        request = request_of(options)
        config = request.config()
    except ChoralError as error:
        if rank == 0:  # every rank finds the same; once is enough
            print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    code = _evaluate(request, config)
    if not code and rank == 0 and after is not None:
        after(request)
    return code


def _evaluate(request: Request, config: Config) -> int:
    from choral.inference.evaluation_pass import evaluate

    folder = request.folder
    return as_rank(config, folder, lambda run: evaluate(config, folder, run, request.force, request.data_name))


if __name__ == "__main__":
    sys.exit(main())
