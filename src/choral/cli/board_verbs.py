"""The verbs that judge steps over time, and two runs beside each other: scores and compare."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from choral.cli import workflow
from choral.cli.parser import Verbs, stdout
from choral.core.errors import ConfigError
from choral.runs.run_dir import RUNS, RunDir
from choral.scoring.scoreboard.board import projects_in


def add_board_verbs(verbs: Verbs) -> None:
    """Add scores and compare."""
    verb = verbs.add(
        "scores",
        scores_verb,
        "choral scores elpv",
        "Print every step of a project that was evaluated, with intervals and paired differences to the step before and to\n"
        "the best, and draw them. Steps are appended by run, evaluate, score, combine and calibrate, and outlive their runs.",
    )
    verb.add_argument("project", nargs="?", default="", metavar="PROJECT", help="default: the only one, else a list")
    verb.add_argument("--split", default="", help="default: those of test data")
    verb.add_argument("--metric", default="", help="that differences are of (default: accuracy, mean_ap or rmse)")
    verb.add_argument(
        "--runs", type=Path, default=RUNS, metavar="DIR", help="where the runs are (default: %(default)s)"
    )
    verb.add_argument("--json", action="store_true", help="for machines")

    verb = verbs.add(
        "compare",
        compare_verb,
        "choral compare first second --by type",
        "Compare two runs on the same test samples: every metric in pairs, McNemar's exact test, the samples that changed\n"
        "sides, by class and by a column of metadata. Runs on different samples are refused.",
    )
    for name in ("run_a", "run_b"):
        verb.add_argument(
            name, metavar=name.upper(), help="a run folder, the name of one under runs/, or its config file"
        )
    verb.add_argument(
        "--of",
        action="append",
        default=[],
        metavar="NAME",
        help="row of `choral score`, of both runs; twice: of RUN_A, then of RUN_B (default: what each answers with)",
    )
    verb.add_argument("--by", default="", metavar="COLUMN", help="of the metadata; slices are compared one by one")
    verb.add_argument("--data", default="", metavar="SHARDS", help="of --by: the packed folder (default: RUN_B's)")
    verb.add_argument(
        "--split", default="", help="default: test where it is evaluated, else the last of evaluate.splits"
    )
    verb.add_argument("--json", action="store_true", help="for machines, with every sample that changed sides")


def compare_verb(options: argparse.Namespace) -> int:
    """Compare two runs in pairs: metrics, classes, slices, samples that changed sides."""
    if options.data and not options.by:
        raise ConfigError("--data: belongs to --by, which reads a column of the packed folder")
    folders = (RunDir.find(options.run_a), RunDir.find(options.run_b))
    found, uses = workflow.compare_runs(folders, options.split, options.of, options.by, options.data)
    if options.json:
        print(json.dumps({**found, "looks": uses}, indent=1, ensure_ascii=False, allow_nan=False))
    else:
        workflow.print_comparison(found, uses, stdout)
    return 0


def scores_verb(options: argparse.Namespace) -> int:
    """Print every evaluated step of a project, and draw progress."""
    root = options.runs / "scoreboard"
    projects = projects_in(root)
    if not options.project and not projects:
        raise ConfigError(f"{root}: nothing has been evaluated yet; `choral evaluate RUN` appends to it")
    if not options.project and len(projects) > 1:
        if options.json:
            print(json.dumps(workflow.projects_as_json(root), indent=1))
        else:
            workflow.print_projects(root, stdout)
        return 0
    scores = workflow.project_scores(root, options.project or projects[0], options.split, options.metric)
    if options.json:
        print(json.dumps(scores, indent=1, ensure_ascii=False, allow_nan=False))
    else:
        workflow.print_board(scores, stdout)
    return 0
