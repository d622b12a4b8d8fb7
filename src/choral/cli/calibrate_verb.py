"""The verb that calibrates a run and decides how it answers: calibrate."""

from __future__ import annotations

import argparse
import json

from choral.cli import workflow
from choral.cli.parser import Verbs, stdout, with_run
from choral.core.errors import ConfigError
from choral.runs.run_dir import RunDir
from choral.scoring.calibrate import Asked


def add_calibrate_verb(verbs: Verbs) -> None:
    """Add calibrate."""
    verb = with_run(
        verbs.add(
            "calibrate",
            calibrate_verb,
            "choral calibrate elpv-demo --cost 'defective->functional=10' --coverage 0.9",
            "Fit a calibration map and choose sets, thresholds or costs on the validation split, judge them on the scored "
            "one,\nand keep them in RUN/answer.json: `choral predict` answers so from then on, until it is deleted.\n"
            "  choral calibrate elpv-demo --threshold 'defective:recall>=0.95'\n"
            "  choral calibrate elpv-demo --method auto --unsure-below 'accuracy>=0.97'",
        )
    )
    verb.add_argument(
        "--of", default="", metavar="NAME", help="a row of `choral score` (default: soft+tta, or the like)"
    )
    verb.add_argument(
        "--method", default="", help="temperature (default), vector, isotonic, none, or auto: the best on validation"
    )
    verb.add_argument(
        "--coverage",
        type=_coverage,
        default=0.9,
        help="of sets of classes, or of intervals; none: no sets (default: 0.9)",
    )
    verb.add_argument("--set", dest="sets", default="", help="aps (default), raps or lac: what sets are made by")
    verb.add_argument("--by-class", action="store_true", help="the coverage holds within each class")
    verb.add_argument(
        "--cost",
        default="",
        metavar="FILE|TRUE->PREDICTED=N,...",
        help="of a mistake (default: 1 each); the rest costs 0",
    )
    verb.add_argument(
        "--threshold",
        action="append",
        default=[],
        metavar="[CLASS:]RULE",
        help="f1, recall>=R or precision>=P, of one class, or of labels; may be given for each label",
    )
    verb.add_argument(
        "--unsure-below", default="", metavar="P|RULE", help="a probability, accuracy>=A or coverage>=C of what is left"
    )
    verb.add_argument("--split", help="that is judged on (default: test where it is evaluated)")
    verb.add_argument("--json", action="store_true", help="for machines")


def calibrate_verb(options: argparse.Namespace) -> int:
    """Calibrate a run, and choose how it answers."""
    folder = RunDir.find(options.run)
    asked = Asked(
        of=options.of,
        method=options.method,
        coverage=options.coverage,
        sets=options.sets,
        by_class=options.by_class,
        costs=options.cost,
        thresholds=tuple(options.threshold),
        unsure_below=options.unsure_below,
    )
    report = workflow.calibrate(folder, options.split, asked)
    if options.json:
        print(json.dumps(report, indent=1, ensure_ascii=False))
    else:
        workflow.print_calibration(report, folder, stdout)
    return 0


def _coverage(text: str) -> float | None:
    if text == "none":
        return None
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"--coverage: expected a number between 0 and 1, or none, got '{text}'") from None
