"""`choral VERB TARGET [key=value ...]`: one verb, one function. Results go to stdout, everything else to stderr.

Exit status: 0 done, 1 failed, 2 wrong usage, 75 stopped (run the same command again). What needs torch is imported by the
verbs that need it, so that the others start at once.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from choral import __version__
from choral.cli.analyze_verb import add_analyze_verb
from choral.cli.board_verbs import add_board_verbs
from choral.cli.calibrate_verb import add_calibrate_verb
from choral.cli.combine_verbs import add_combine_verbs
from choral.cli.data_verbs import add_data_verbs
from choral.cli.export_verbs import add_export_verbs
from choral.cli.improve_verb import add_improve_verb
from choral.cli.job_verbs import add_job_verbs
from choral.cli.parser import Parser, Verb, Verbs, stderr
from choral.cli.predict_verb import add_predict_verb
from choral.cli.probe_verb import add_probe_verb
from choral.cli.run_verbs import add_run_verbs
from choral.cli.score_verb import add_score_verb
from choral.cli.serve_verb import add_serve_verb
from choral.cli.tune_verb import add_tune_verb
from choral.core.errors import ChoralError, ConfigError, did_you_mean

_HELP = """Example, on a folder with one subfolder of images a class:
  choral pack photos/ shards/
  choral run configs/default.yaml data.shards=shards/

Fine-tune pretrained image models, train ensembles as parallel jobs, and know how sure they are.

usage: choral VERB TARGET [key=value ...]

verbs:
{verbs}

`choral VERB --help` tells more, `choral --version` which choral this is.
Exit status: 0 done, 1 failed, 2 wrong usage, 75 stopped: run the same command again."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit status."""
    try:
        options = _parse(sys.argv[1:] if arguments is None else arguments)
        verb: Verb = options.verb
        return verb(options)
    except ChoralError as error:
        stderr.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        return error.exit_code
    except KeyboardInterrupt:
        stderr.print("interrupted; run the same command again to continue")
        return 75
    except BrokenPipeError:  # `choral ls DIR | head`
        sys.stderr.close()
        return 1


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read a command line; each verb has a parser of its own, so that options may stand before, between and after words."""
    verbs = _parsers()
    first = arguments[0] if arguments else "--help"
    if first in ("-h", "--help"):
        width = max(map(len, verbs))
        print(_HELP.format(verbs="\n".join(f"  {name:{width}}  {parser.epilog}" for name, parser in verbs.items())))
        raise SystemExit(0 if arguments else 2)
    if first == "--version":
        print(f"choral {__version__}")
        raise SystemExit(0)
    if first not in verbs:
        raise ConfigError(f"'{first}' is no verb.{did_you_mean(first, verbs)} See choral --help")
    return verbs[first].parse_intermixed_args(list(arguments[1:]))


def _parsers() -> dict[str, Parser]:
    verbs = Verbs()
    add_data_verbs(verbs)
    add_run_verbs(verbs)
    add_score_verb(verbs)
    add_job_verbs(verbs)
    add_tune_verb(verbs)
    add_combine_verbs(verbs)
    add_board_verbs(verbs)
    add_calibrate_verb(verbs)
    add_analyze_verb(verbs)
    add_probe_verb(verbs)
    add_improve_verb(verbs)
    add_export_verbs(verbs)
    add_predict_verb(verbs)
    add_serve_verb(verbs)
    return verbs.parsers
