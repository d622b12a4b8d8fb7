"""The verb that says how good predictions are: score."""

from __future__ import annotations

import argparse
import json

from choral.cli import workflow
from choral.cli.parser import Verbs, stdout, with_run
from choral.core.errors import ConfigError
from choral.runs.run_dir import RunDir
from choral.scoring.predictor_table import render_card
from choral.scoring.slice_table import render_slices


def add_score_verb(verbs: Verbs) -> None:
    """Add score."""
    text = (
        "Print members, soft and hard vote, without and with test-time views, each with a 95 % interval; what\n"
        "they gain together, and why. No forward pass.\n\n"
        "  choral score elpv-demo --of soft+tta               all metrics of one row, by class, and the confusion matrix\n"
        "  choral score elpv-demo --of soft+tta --by type     its metrics for each value of a column of the metadata"
    )
    verb = with_run(verbs.add("score", score_verb, "choral score elpv-demo --json", text))
    verb.add_argument("--split", help="default: test where it is evaluated, else the last of evaluate.splits")
    verb.add_argument("--of", metavar="NAME", help="a row of the table, or combined/NAME: all its metrics")
    verb.add_argument(
        "--by",
        metavar="COLUMN",
        help="of the index: metrics by its values, of the answer or soft+tta if --of names no other",
    )
    verb.add_argument("--data", metavar="SHARDS", help="of --by: the packed folder (default: data.shards of the run)")
    verb.add_argument("--json", action="store_true", help="for machines")


def score_verb(options: argparse.Namespace) -> int:
    """Print members and votes with intervals; all metrics of one; metrics by slices."""
    folder = RunDir.find(options.run)
    if options.data and not options.by:
        raise ConfigError("--data: belongs to --by, which reads a column of the packed folder")
    if options.by:
        found = workflow.slices(folder, options.split, options.of or "", options.by, options.data or "")
        if options.json:
            _print_json(found)
        else:
            stdout.print(render_slices(found))
            workflow.print_looks(folder, found["split"], stdout)
    elif options.of:
        card = workflow.card(folder, options.split, options.of)
        if options.json:
            _print_json(card)
        else:
            stdout.print(render_card(card))
            workflow.print_looks(folder, card["split"], stdout)
    else:
        scores = workflow.score(folder, options.split)
        if options.json:
            print(workflow.scores_as_json(scores))
        else:
            workflow.print_scores(scores, folder, stdout)
    return 0


def _print_json(content: object) -> None:
    print(json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False))
