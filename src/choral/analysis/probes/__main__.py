"""`accelerate launch -m choral.analysis.probes RUN [key=value ...]`: probe a run on the ranks that the launcher starts."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from choral.analysis.probes.request import ProbeRequest, add_arguments, parse_request
from choral.core.errors import ChoralError
from choral.runs.rank_main import run_rank


def main(arguments: Sequence[str] | None = None) -> int:
    """Probe a run as the command line says and return the exit status."""
    parser = argparse.ArgumentParser(prog="accelerate launch -m choral.analysis.probes", description=__doc__)
    add_arguments(parser)
    options = parser.parse_intermixed_args(arguments)
    try:
        request: ProbeRequest = parse_request(options)
        config = request.config()
    except ChoralError as error:
        if os.environ.get("RANK", "0") == "0":  # every rank finds the same error
            print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    from choral.analysis.probes.probe_pass import probe

    return run_rank(
        config,
        request.folder,
        lambda run: probe(config, request.folder, run, request.split, request.families, request.force),
    )


if __name__ == "__main__":
    sys.exit(main())
