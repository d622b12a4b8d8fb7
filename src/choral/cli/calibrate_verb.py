"""The verb that fits the prediction policy of a run: calibrate."""

from __future__ import annotations

import argparse
import json

from choral.cli.consoles import stdout
from choral.cli.parser import Verbs, with_run
from choral.cli.workflow.calibration import calibrate, print_calibration
from choral.core.errors import ConfigError
from choral.runs.run_dir import RunDir
from choral.scoring.calibrate import CalibrationRequest


def add_verbs(verbs: Verbs) -> None:
    """Add calibrate."""
    verb = with_run(
        verbs.add(
            "calibrate",
            calibrate_verb,
            "choral calibrate elpv-demo --cost 'defective->functional=10' --coverage 0.9",
            "Fit a calibration map, sets, thresholds or costs on the validation split, evaluate them on the scored split,\n"
            "and write them to RUN/answer.json, which `choral predict` applies until it is deleted.\n"
            "  choral calibrate elpv-demo --threshold 'defective:recall>=0.95'\n"
            "  choral calibrate elpv-demo --method auto --unsure-below 'accuracy>=0.97'",
        )
    )
    verb.add_argument(
        "--of", default="", metavar="NAME", help="a row of `choral score` (default: soft+tta, or the nearest to it)"
    )
    verb.add_argument(
        "--method", default="", help="temperature (default), vector, isotonic, none, or auto: the best on validation"
    )
    verb.add_argument(
        "--coverage",
        type=_coverage,
        default=0.9,
        help="probability that a set or interval contains the truth; none: no sets (default: 0.9)",
    )
    verb.add_argument("--set", dest="sets", default="", help="score of the sets: aps (default), raps or lac")
    verb.add_argument("--by-class", action="store_true", help="reach the coverage within each class")
    verb.add_argument(
        "--cost",
        default="",
        metavar="FILE|TRUE->PREDICTED=N,...",
        help="cost of a mistake (default: 1); correct predictions cost 0",
    )
    verb.add_argument(
        "--threshold",
        action="append",
        default=[],
        metavar="[CLASS:]RULE",
        help="f1, recall>=R or precision>=P, for one class or for labels; can be repeated per label",
    )
    verb.add_argument(
        "--unsure-below",
        default="",
        metavar="P|RULE",
        help="a probability, or accuracy>=A or coverage>=C of the remaining samples",
    )
    verb.add_argument("--split", help="to evaluate on (default: test if it has been evaluated)")
    verb.add_argument("--json", action="store_true", help="print JSON")


def calibrate_verb(options: argparse.Namespace) -> int:
    """Calibrate a run and write its prediction policy."""
    folder = RunDir.find(options.run)
    request = CalibrationRequest(
        of=options.of,
        method=options.method,
        coverage=options.coverage,
        sets=options.sets,
        by_class=options.by_class,
        costs=options.cost,
        thresholds=tuple(options.threshold),
        unsure_below=options.unsure_below,
    )
    report = calibrate(folder, options.split, request)
    if options.json:
        print(json.dumps(report, indent=1, ensure_ascii=False))
    else:
        print_calibration(report, folder, stdout)
    return 0


def _coverage(text: str) -> float | None:
    if text == "none":
        return None
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"--coverage: expected a number between 0 and 1, or none, got '{text}'") from None
