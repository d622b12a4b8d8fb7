"""`accelerate launch -m choral.inference RUN|CHECKPOINT... [key=value ...]`: write ledgers on the ranks that the launcher
starts."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence

from choral.config import Config
from choral.core.errors import ChoralError
from choral.inference.evaluation_request import EvaluationRequest, add_arguments, build_request
from choral.runs.rank_main import run_rank


def main(arguments: Sequence[str] | None = None, after: Callable[[EvaluationRequest], None] | None = None) -> int:
    """Evaluate as the command line says, and return the exit status.

    Args:
        arguments: of the command line; None: those of the process.
        after: called on the main rank if the evaluation succeeded.
    """
    parser = argparse.ArgumentParser(
        prog="accelerate launch launch/evaluate.py",
        description="Write the prediction ledgers of a run, or of several runs and checkpoints as one ensemble. "
        "Example: accelerate launch launch/evaluate.py elpv-demo --split test --views d4",
    )
    add_arguments(parser)
    options = parser.parse_intermixed_args(arguments)
    rank = int(os.environ.get("RANK", "0"))  # set by the launcher; there is no process group yet
    try:
        request = build_request(options)
        config = request.config()
    except ChoralError as error:
        if rank == 0:  # every rank meets the same error; one message is enough
            print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    code = _evaluate(request, config)
    if not code and rank == 0 and after is not None:
        after(request)
    return code


def _evaluate(request: EvaluationRequest, config: Config) -> int:
    from choral.inference.evaluation_pass import evaluate

    run_dir, force, data_name = request.run_dir, request.force, request.data_name
    return run_rank(config, run_dir, lambda runtime: evaluate(config, run_dir, runtime, force, data_name))


if __name__ == "__main__":
    sys.exit(main())
