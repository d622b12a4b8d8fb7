"""The verb `improve`: retrains with advised augmentation and keeps what helps."""

from __future__ import annotations

import argparse
import json

from choral.cli.consoles import stderr, stdout
from choral.cli.parser import Verbs, with_config
from choral.cli.workflow.improvement import improve
from choral.cli.workflow.improvement_table import print_improvement
from choral.config.files import load_config
from choral.core.errors import ConfigError


def add_verbs(verbs: Verbs) -> None:
    """Add improve."""
    text = (
        "Train a baseline (one network of the config: runs/NAME-baseline), probe it on validation data, train it again with\n"
        "the augmentation that the probes advise (runs/NAME-augment1), and keep that only if the paired difference on\n"
        "validation data shows an improvement; then repeat. Both runs see the same samples in the same order. The test\n"
        "split is evaluated once, at the end. The same command continues after a stop.\n\n"
        "  choral improve configs/elpv-demo.yaml --seeds 3           three networks per step\n\n"
        "runs/NAME-baseline/improved.yaml is the config with what was kept; advice.yaml there is the advice with reasons\n"
        "and figures. All steps appear on the scoreboard: choral scores PROJECT --split val"
    )
    verb = with_config(verbs.add("improve", improve_verb, "choral improve configs/elpv-demo.yaml", text))
    verb.add_argument("--seeds", type=int, default=1, help="networks per step (default: %(default)s)")
    verb.add_argument("--rounds", type=int, default=2, help="rounds of advice, at most (default: %(default)s)")
    verb.add_argument("--no-test", action="store_true", help="do not evaluate the test split")
    verb.add_argument("--json", action="store_true", help="print the result as JSON")


def improve_verb(options: argparse.Namespace) -> int:
    """Train with advised augmentation and keep it if it helps on validation data."""
    for name, value in (("--seeds", options.seeds), ("--rounds", options.rounds)):
        if value < 1:
            raise ConfigError(f"{name}: expected at least 1, got {value}")
    config = load_config(options.config, options.overrides)
    found = improve(config, options.seeds, options.rounds, stderr, test=not options.no_test)
    if options.json:
        print(json.dumps(found.to_json(), indent=1, ensure_ascii=False, allow_nan=False))
    else:
        print_improvement(found, stdout)
    return 0
