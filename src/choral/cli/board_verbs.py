"""The verbs that compare steps of a project over time, and two runs: scores and compare."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from choral.cli.consoles import stdout
from choral.cli.parser import Verbs
from choral.cli.workflow.comparison import compare_runs, print_comparison
from choral.cli.workflow.scoreboard import print_board, print_projects, project_scores, projects_to_json
from choral.core.errors import ConfigError
from choral.runs.run_dir import RUNS_DIR, RunDir
from choral.scoring.scoreboard.board import list_projects


def add_verbs(verbs: Verbs) -> None:
    """Add scores and compare."""
    verb = verbs.add(
        "scores",
        scores_verb,
        "choral scores elpv",
        "Print and draw every evaluated step of a project, with intervals and paired differences to the previous and the\n"
        "best step. The verbs run, evaluate, score, combine and calibrate append steps, which outlive their runs.",
    )
    verb.add_argument(
        "project", nargs="?", default="", metavar="PROJECT", help="default: the only project; with several, list them"
    )
    verb.add_argument("--split", default="", help="default: the test splits")
    verb.add_argument("--metric", default="", help="of the differences (default: accuracy, mean_ap or rmse)")
    verb.add_argument(
        "--runs", type=Path, default=RUNS_DIR, metavar="DIR", help="directory of the runs (default: %(default)s)"
    )
    verb.add_argument("--json", action="store_true", help="print JSON")

    verb = verbs.add(
        "compare",
        compare_verb,
        "choral compare first second --by type",
        "Compare two runs on the same test samples: paired differences of every metric, McNemar's exact test, metrics by\n"
        "class and metadata column, and the samples that only one gets right. Runs on different samples are refused.",
    )
    for name in ("run_a", "run_b"):
        verb.add_argument(
            name, metavar=name.upper(), help="a run directory, the name of one under runs/, or its config file"
        )
    verb.add_argument(
        "--of",
        action="append",
        default=[],
        metavar="NAME",
        help="row of `choral score`, of both runs; given twice: of RUN_A, then of RUN_B (default: each run's own default)",
    )
    verb.add_argument("--by", default="", metavar="COLUMN", help="metadata column; its slices are compared one by one")
    verb.add_argument(
        "--data", default="", metavar="SHARDS", help="packed directory that --by reads (default: RUN_B's)"
    )
    verb.add_argument(
        "--split", default="", help="default: test where it is evaluated, else the last of evaluate.splits"
    )
    verb.add_argument("--json", action="store_true", help="print JSON, with every sample that only one run gets right")


def compare_verb(options: argparse.Namespace) -> int:
    """Compare two runs: metrics, classes, slices, and the samples that only one gets right."""
    if options.data and not options.by:
        raise ConfigError("--data: needs --by, which reads a column of the packed directory")
    folders = (RunDir.find(options.run_a), RunDir.find(options.run_b))
    found, uses = compare_runs(folders, options.split, options.of, options.by, options.data)
    if options.json:
        print(json.dumps({**found, "test_set_uses": uses}, indent=1, ensure_ascii=False, allow_nan=False))
    else:
        print_comparison(found, uses, stdout)
    return 0


def scores_verb(options: argparse.Namespace) -> int:
    """Print and draw every evaluated step of a project."""
    root = options.runs / "scoreboard"
    projects = list_projects(root)
    if not options.project and not projects:
        raise ConfigError(f"{root}: nothing has been evaluated yet; `choral evaluate RUN` appends to it")
    if not options.project and len(projects) > 1:
        if options.json:
            print(json.dumps(projects_to_json(root), indent=1))
        else:
            print_projects(root, stdout)
        return 0
    scores = project_scores(root, options.project or projects[0], options.split, options.metric)
    if options.json:
        print(json.dumps(scores, indent=1, ensure_ascii=False, allow_nan=False))
    else:
        print_board(scores, stdout)
    return 0
