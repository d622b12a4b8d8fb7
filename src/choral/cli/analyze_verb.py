"""The verb that says what is wrong with a run, and with its data: analyze."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from choral.cli import workflow
from choral.cli.parser import Verbs, stdout, with_run
from choral.core.errors import ConfigError
from choral.runs.run_dir import RunDir


def add_analyze_verb(verbs: Verbs) -> None:
    """Add analyze."""
    verb = with_run(
        verbs.add(
            "analyze",
            analyze_verb,
            "choral analyze elpv-demo",
            "Write one HTML page, which needs no network: worst predictions with each member's vote, confusions, classes\n"
            "and slices that differ, reliability, probable label errors, near-duplicates across splits, data health, and\n"
            "what `choral probe` and `choral improve` found. No forward pass, unless val has not been evaluated yet.\n\n"
            "  choral analyze elpv-demo --of member/first --out first.html\n"
            "  choral analyze elpv-demo --json > analysis.json",
        )
    )
    verb.add_argument("--split", default="", help="that is analysed (default: data.val_split)")
    verb.add_argument(
        "--of", default="", metavar="NAME", help="a row of `choral score` (default: the answer or soft+tta)"
    )
    verb.add_argument("--out", type=Path, metavar="FILE", help="the page (default: RUN/analysis-SPLIT.html)")
    verb.add_argument("--force", action="store_true", help="write the page again, even if nothing has changed")
    verb.add_argument("--json", action="store_true", help="for machines: print all of it, write no page")


def analyze_verb(options: argparse.Namespace) -> int:
    """Write a page of what is wrong with a run and its data."""
    folder = RunDir.find(options.run)
    if options.json:
        if options.out:
            raise ConfigError("--out: names a page, and --json prints instead of writing one")
        found = workflow.analyzed(folder, options.split, options.of).to_json()
        print(json.dumps(found, ensure_ascii=False, allow_nan=False))
        return 0
    path = workflow.analyze(folder, options.split, options.of, options.out, force=options.force, results=stdout)
    stdout.print(f"Page: {path}", markup=False, highlight=False, soft_wrap=True)
    return 0
