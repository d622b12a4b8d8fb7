"""choral combine: combine the predictions of a run's members."""

from __future__ import annotations

import argparse
import json

from choral.cli.consoles import stderr, stdout
from choral.cli.parser import Verbs, with_run
from choral.cli.workflow.scores import combine, print_test_set_uses
from choral.config.text import split_at_commas
from choral.core.errors import ConfigError
from choral.ensembles.combination_table import render_combination
from choral.ensembles.rule_fitting import MAX_PICKS
from choral.ensembles.saved_combination import CombinationRequest
from choral.runs.run_dir import RunDir

_RULES = (
    "soft (mean of probabilities), hard (majority vote), geometric (mean), weighted, "
    "greedy, stack, boosting; regression: mean, median, weighted, greedy"
)


def add_verbs(verbs: Verbs) -> None:
    """Add combine."""
    verb = with_run(
        verbs.add(
            "combine",
            combine_verb,
            "choral combine elpv-demo --rule greedy",
            "Combine the members' predictions by a rule, score the result and keep it in RUN/combined/NAME/. No forward\n"
            "pass. Rules are fitted on the validation split, stack on out-of-fold predictions, never on the scored split.",
        )
    )
    verb.add_argument("--rule", required=True, help=_RULES)
    verb.add_argument("--members", type=_names, default=(), metavar="A,B", help="members of the run (default: all)")
    verb.add_argument(
        "--views",
        type=_views,
        default=(),
        metavar="VIEW[,VIEW]",
        help="identity, tta, or kept views to average; learned: kept views with weights learned on validation "
        "(default: tta)",
    )
    verb.add_argument("--split", help="default: test if it is evaluated, else the last of evaluate.splits")
    verb.add_argument(
        "--with",
        dest="files",
        action="append",
        default=[],
        metavar="[NAME=]FILE",
        help="predictions of another tool: .csv or .parquet with a column key and one for each class; or a ledger",
    )
    verb.add_argument(
        "--with-val",
        dest="validation_files",
        action="append",
        default=[],
        metavar="[NAME=]FILE",
        help="the same tool's predictions on the validation split, for rules that are fitted there",
    )
    verb.add_argument(
        "--weights",
        type=_weights,
        default={},
        metavar="A=0.7,B=0.3",
        help="member weights of rule weighted (default: fitted)",
    )
    verb.add_argument(
        "--by", default="", help="criterion of greedy: log_loss (default), accuracy; regression: squared_error"
    )
    verb.add_argument(
        "--picks", type=int, default=MAX_PICKS, help="members that greedy picks at most (default: %(default)s)"
    )
    verb.add_argument(
        "--temperature",
        default="",
        metavar="fit|none|T",
        help="divides log probabilities (default: fit if there is a validation split)",
    )
    verb.add_argument("--name", default="", help="name of the combination (default: the rule)")
    verb.add_argument("--json", action="store_true", help="print JSON")


def combine_verb(options: argparse.Namespace) -> int:
    """Combine members by a rule, score the combination and keep it."""
    run_dir = RunDir.find(options.run)
    request = CombinationRequest(
        rule=options.rule,
        members=options.members,
        views=options.views,
        files=tuple(options.files),
        validation_files=tuple(options.validation_files),
        weights=options.weights,
        by=options.by,
        picks=options.picks,
        temperature=options.temperature,
        name=options.name,
    )
    combination = combine(run_dir, options.split, request)
    if options.json:
        print(json.dumps(combination, indent=1, ensure_ascii=False))
        return 0
    stdout.print(render_combination(combination))
    print_test_set_uses(run_dir, combination["split"], stdout)
    folder = run_dir.path / "combined" / combination["name"]
    state = "up to date" if combination["again"] else "written"
    stderr.print(f"{folder / combination['split']}.parquet: {state}", markup=False, highlight=False, soft_wrap=True)
    return 0


def _names(text: str) -> tuple[str, ...]:
    return tuple(name for name in text.split(",") if name)


def _views(text: str) -> tuple[str, ...]:
    return tuple(view for view in split_at_commas(text) if view)


def _weights(text: str) -> dict[str, float]:
    weights: dict[str, float] = {}
    for part in _names(text):
        name, _, value = part.rpartition("=")
        try:
            weights[name] = float(value)
        except ValueError:
            raise ConfigError(f"--weights: expected MEMBER=NUMBER, got '{part}'") from None
    return weights
