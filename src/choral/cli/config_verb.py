"""The verb `config`. It imports neither NumPy nor torch, so that it starts at once on a login node."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from choral.cli.parser import Verbs, with_config
from choral.config.files import load_config, to_yaml


def add_verbs(verbs: Verbs) -> None:
    """Add `config`."""
    verb = verbs.add(
        "config",
        config_verb,
        "choral config configs/default.yaml data.shards=shards/ train.lr=3e-4",
        "Print the resolved config: defaults, base files, file and overrides.\n\n"
        "With --schema, print the JSON schema of config files instead, in which every key has its type, default and\n"
        "description. An editor with a YAML language server completes and checks the keys of a config that begins with\n"
        "  # yaml-language-server: $schema=schema.json",
    )
    with_config(verb)
    verb.add_argument("--schema", action=_PrintSchema, nargs=0, help="print the JSON schema; needs no CONFIG")


class _PrintSchema(argparse.Action):
    """Prints the JSON schema and exits, as --help prints the help."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from choral.config.schema import render_json_schema

        sys.stdout.write(render_json_schema())
        parser.exit()


def config_verb(options: argparse.Namespace) -> int:
    """Print the resolved config."""
    sys.stdout.write(to_yaml(load_config(options.config, options.overrides)))
    return 0
