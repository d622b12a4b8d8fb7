"""The verb that combines what members said: combine."""

from __future__ import annotations

import argparse
import json

from choral.cli import workflow
from choral.cli.parser import Verbs, stderr, stdout, with_run
from choral.config.fields import split_at_commas
from choral.core.errors import ConfigError
from choral.ensembles.combination_table import render_combination
from choral.ensembles.rule_fitting import PICKS
from choral.ensembles.saved_combination import Asked
from choral.runs.run_dir import RunDir

_RULES = (
    "soft (mean of probabilities), hard (majority), geometric (mean), weighted, "
    "greedy, stack, boosting; regression: mean, median"
)


def add_combine_verbs(verbs: Verbs) -> None:
    """Add combine."""
    verb = with_run(
        verbs.add(
            "combine",
            combine_verb,
            "choral combine elpv-demo --rule greedy",
            "Combine the members' predictions by a rule, score that, and keep it in RUN/combined/NAME/. No forward pass.\n"
            "Rules learn from the validation split, stack from out-of-fold predictions, none from what is scored.",
        )
    )
    verb.add_argument("--rule", required=True, help=_RULES)
    verb.add_argument("--members", type=_words, default=(), metavar="A,B", help="of the run (default: all)")
    verb.add_argument(
        "--views",
        type=_views,
        default=(),
        metavar="VIEW[,VIEW]",
        help="identity, tta, or kept views: their mean; learned: kept views, weighted by what is best on validation "
        "(default: tta)",
    )
    verb.add_argument("--split", help="default: test where it is evaluated, else the last of evaluate.splits")
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
        help="the same tool about the validation split, for what is fitted there",
    )
    verb.add_argument(
        "--weights", type=_weights, default={}, metavar="A=0.7,B=0.3", help="of weighted (default: fitted)"
    )
    verb.add_argument("--by", default="", help="of greedy: log_loss (default) or accuracy; regression: squared_error")
    verb.add_argument("--picks", type=int, default=PICKS, help="of greedy, at most (default: %(default)s)")
    verb.add_argument(
        "--temperature",
        default="",
        metavar="fit|none|T",
        help="of probabilities (default: fit where there is validation)",
    )
    verb.add_argument("--name", default="", help="of the combination (default: the rule's)")
    verb.add_argument("--json", action="store_true", help="for machines")


def combine_verb(options: argparse.Namespace) -> int:
    """Combine members by a rule, score and keep it."""
    folder = RunDir.find(options.run)
    asked = Asked(
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
    found = workflow.combine(folder, options.split, asked)
    if options.json:
        print(json.dumps(found, indent=1, ensure_ascii=False))
        return 0
    stdout.print(render_combination(found))
    workflow.print_looks(folder, found["split"], stdout)
    kept = folder.path / "combined" / found["name"]
    words = "there already, from the same files" if found["again"] else "kept"
    stderr.print(f"{kept / found['split']}.parquet: {words}", markup=False, highlight=False, soft_wrap=True)
    return 0


def _words(text: str) -> tuple[str, ...]:
    return tuple(word for word in text.split(",") if word)


def _views(text: str) -> tuple[str, ...]:
    return tuple(word for word in split_at_commas(text) if word)


def _weights(text: str) -> dict[str, float]:
    weights: dict[str, float] = {}
    for part in _words(text):
        name, _, value = part.rpartition("=")
        try:
            weights[name] = float(value)
        except ValueError:
            raise ConfigError(f"--weights: expected MEMBER=NUMBER, got '{part}'") from None
    return weights
