"""The verb that tries what probes advise: improve."""

from __future__ import annotations

import argparse
import json

from choral.cli import workflow
from choral.cli.parser import Verbs, stderr, stdout, with_config
from choral.config.files import load_config
from choral.core.errors import ConfigError


def add_improve_verb(verbs: Verbs) -> None:
    """Add improve."""
    text = (
        "Train a baseline (one network of the config: runs/NAME-baseline), probe it on validation, train it again with the\n"
        "augmentation that its probes advise (runs/NAME-augment1), and keep that only if the paired difference on\n"
        "validation says that it helps; then once more. Both see the same samples in the same order. The test split is\n"
        "asked about once, at the end. Run it again to continue; what is there is not done again.\n\n"
        "  choral improve configs/elpv-demo.yaml --seeds 3           judged by three networks each\n"
        "What was kept stands in runs/NAME-baseline/improved.yaml, the config with it; the advice, with its reasons and\n"
        "figures, in advice.yaml there; all steps on the scoreboard: choral scores PROJECT --split val"
    )
    verb = with_config(verbs.add("improve", improve_verb, "choral improve configs/elpv-demo.yaml", text))
    verb.add_argument(
        "--seeds", type=int, default=1, help="networks that each step is judged by (default: %(default)s)"
    )
    verb.add_argument(
        "--rounds", type=int, default=2, help="pieces of advice that are tried at most (default: %(default)s)"
    )
    verb.add_argument("--no-test", action="store_true", help="leave the test split alone")
    verb.add_argument("--json", action="store_true", help="for machines")


def improve_verb(options: argparse.Namespace) -> int:
    """Train with what probes advise, and keep it if validation says that it helps."""
    for name, value in (("--seeds", options.seeds), ("--rounds", options.rounds)):
        if value < 1:
            raise ConfigError(f"{name}: expected at least 1, got {value}")
    config = load_config(options.config, options.overrides)
    found = workflow.improve(config, options.seeds, options.rounds, stderr, test=not options.no_test)
    if options.json:
        print(json.dumps(found.to_json(), indent=1, ensure_ascii=False, allow_nan=False))
    else:
        workflow.print_improved(found, stdout)
    return 0
