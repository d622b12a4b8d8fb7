"""The verb `analyze`: error analysis of a run and its data."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from choral.cli.consoles import stdout
from choral.cli.parser import Verbs, with_run
from choral.cli.workflow.analysis import analyze, compute_analysis
from choral.core.errors import ConfigError
from choral.runs.run_dir import RunDir


def add_verbs(verbs: Verbs) -> None:
    """Add analyze."""
    verb = with_run(
        verbs.add(
            "analyze",
            analyze_verb,
            "choral analyze elpv-demo",
            "Write the error analysis as one self-contained HTML page: worst predictions with each member's vote,\n"
            "confusion matrix, classes and slices that differ, calibration, probable label errors, near-duplicates across\n"
            "splits, data health, and the results of `choral probe` and `choral improve`. Needs no forward pass, unless the\n"
            "validation split has not been evaluated.\n\n"
            "  choral analyze elpv-demo --of member/first --out first.html\n"
            "  choral analyze elpv-demo --json > analysis.json",
        )
    )
    verb.add_argument("--split", default="", help="split to analyze (default: data.val_split)")
    verb.add_argument(
        "--of",
        default="",
        metavar="NAME",
        help="row of `choral score` to analyze (default: the calibrated policy, else soft+tta)",
    )
    verb.add_argument("--out", type=Path, metavar="FILE", help="file to write (default: RUN/analysis-SPLIT.html)")
    verb.add_argument("--force", action="store_true", help="write the page even if it is up to date")
    verb.add_argument("--json", action="store_true", help="print the analysis as JSON instead of writing a page")


def analyze_verb(options: argparse.Namespace) -> int:
    """Write the error analysis of a run and its data."""
    folder = RunDir.find(options.run)
    if options.json:
        if options.out:
            raise ConfigError("--out: cannot be combined with --json, which prints instead of writing a page")
        content = compute_analysis(folder, options.split, options.of).to_json()
        print(json.dumps(content, ensure_ascii=False, allow_nan=False))
        return 0
    path = analyze(folder, options.split, options.of, options.out, force=options.force, results=stdout)
    stdout.print(f"Page: {path}", markup=False, highlight=False, soft_wrap=True)
    return 0
