"""`accelerate launch -m choral.deploy.bundle.ranks BUNDLE IMAGES... -o FILE`: predict on the ranks that the launcher starts.

Exit status 0 means that the file was written; unreadable images are counted on stderr, and the file holds their reasons.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from choral.core.errors import ChoralError, ConfigError
from choral.deploy.bundle.image_sources import STDIN
from choral.deploy.bundle.predict_request import PredictRequest, add_predict_arguments, predict_request
from choral.runs.rank_main import run_with_runtime
from choral.runs.run_dir import write_json

STOP, TALLY = "stop", "tally.json"
"""Files in the directory of `--scratch`: a request to stop, and the image counts."""
_TIMEOUT_S = 1800.0  # for ranks to find each other; later nobody waits for a message


def main(arguments: Sequence[str] | None = None) -> int:
    """Predict the images of the command line, and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="accelerate launch launch/predict.py",
        description="Predict images on several GPUs or processes. "
        "Example: accelerate launch launch/predict.py bundles/cells photos/ -o predictions.parquet",
    )
    add_predict_arguments(parser)
    parser.add_argument("--scratch", type=Path, help=argparse.SUPPRESS)  # of choral predict --processes N
    options = parser.parse_intermixed_args(arguments)
    rank = int(os.environ.get("RANK", "0"))  # set by the launcher; needed before there is a process group
    try:
        request = predict_request(options)
        _check(request)
    except ChoralError as error:
        if rank == 0:  # every rank finds the same; once is enough
            print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return _as_rank(request, options.scratch)


def _check(request: PredictRequest) -> None:
    if request.out is None:
        raise ConfigError("-o: several ranks need an output file: a .csv, .jsonl or .parquet")
    if STDIN in request.images:
        raise ConfigError("-: ranks cannot share standard input; name a file with the list as @FILE")
    if request.device != "auto":
        raise ConfigError("--device: ranks have one each; the launcher decides (its --cpu, CUDA_VISIBLE_DEVICES)")


def _as_rank(request: PredictRequest, scratch: Path | None) -> int:
    from choral.core.process_group import Runtime
    from choral.deploy.bundle.rank_shares import predict_as_rank

    assert request.out is not None
    out = request.out
    stop = out.with_name(f".{out.name}.{STOP}") if scratch is None else scratch / STOP

    def work(run: Runtime) -> None:
        counts = predict_as_rank(request, run)
        if counts is None:
            return
        if scratch is None:
            print(counts.summary(out), file=sys.stderr)
        else:
            write_json(scratch / TALLY, {"images": counts.images, "bad": counts.bad})

    return run_with_runtime(lambda: Runtime("no", 1, _TIMEOUT_S, stop), work)


if __name__ == "__main__":
    sys.exit(main())
