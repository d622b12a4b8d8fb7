"""choral score: scores of a run with confidence intervals."""

from __future__ import annotations

import argparse
import json

from choral.cli.consoles import stdout
from choral.cli.parser import Verbs, with_run
from choral.cli.workflow.predictor_report import evaluate_predictor, evaluate_slices
from choral.cli.workflow.scores import print_scores, print_test_set_uses, score, scores_as_json
from choral.core.errors import ConfigError
from choral.runs.run_dir import RunDir
from choral.scoring.predictor_table import render_predictor_report
from choral.scoring.slice_table import render_slices


def add_verbs(verbs: Verbs) -> None:
    """Add score."""
    text = (
        "Print the scores of members and combination rules, without and with test-time views, with 95 % intervals;\n"
        "then what the ensemble gains, and why. No forward pass.\n\n"
        "  choral score elpv-demo --of soft+tta               all metrics of one row, by class, and the confusion matrix\n"
        "  choral score elpv-demo --of soft+tta --by type     its metrics for each value of a column of the metadata"
    )
    verb = with_run(verbs.add("score", score_verb, "choral score elpv-demo --json", text))
    verb.add_argument("--split", help="default: test if it is evaluated, else the last of evaluate.splits")
    verb.add_argument("--of", metavar="NAME", help="print all metrics of one row of the table, or of combined/NAME")
    verb.add_argument(
        "--by",
        metavar="COLUMN",
        help="print metrics for each value of a column of the index (of answer if calibrated, else of soft+tta, "
        "if --of is not given)",
    )
    verb.add_argument(
        "--data", metavar="SHARDS", help="packed folder with the column of --by (default: data.shards of the run)"
    )
    verb.add_argument("--json", action="store_true", help="print JSON")


def score_verb(options: argparse.Namespace) -> int:
    """Print the score table, all metrics of one predictor, or its metrics by slice."""
    run_dir = RunDir.find(options.run)
    if options.data and not options.by:
        raise ConfigError("--data: belongs to --by, which reads a column of the packed folder")
    if options.by:
        slices = evaluate_slices(run_dir, options.split, options.of or "", options.by, options.data or "")
        if options.json:
            _print_json(slices)
        else:
            stdout.print(render_slices(slices))
            print_test_set_uses(run_dir, slices["split"], stdout)
    elif options.of:
        report = evaluate_predictor(run_dir, options.split, options.of)
        if options.json:
            _print_json(report)
        else:
            stdout.print(render_predictor_report(report))
            print_test_set_uses(run_dir, report["split"], stdout)
    else:
        scores = score(run_dir, options.split)
        if options.json:
            print(scores_as_json(scores))
        else:
            print_scores(scores, run_dir, stdout)
    return 0


def _print_json(content: object) -> None:
    print(json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False))
