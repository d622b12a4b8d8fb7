"""The request of an evaluation, as `choral evaluate` and launch/evaluate.py read it from the command line."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from choral.config import Config, binding_difference
from choral.config.files import parse_override, with_overrides
from choral.config.text import split_at_commas
from choral.core.errors import ConfigError
from choral.inference.assembled_run import resolve_targets
from choral.inference.external_data import parse_data_option
from choral.runs.run_dir import RunDir

_OVERRIDE = re.compile(r"[a-z_]+(\.[A-Za-z0-9_]+)*=")
_ALLOWED = ("evaluate.", "train.precision:", "data.shards:", "data.on_bad_sample:", "data.max_bad_fraction:")


@dataclass(frozen=True)
class EvaluationRequest:
    """The run to evaluate, the data, and the options.

    Attributes:
        run_dir: of the run, which may have been assembled for this evaluation.
        overrides: "key=value" each.
        data: [NAME=]FOLDER of other data than the run's own; "": the run's own.
        split, views: comma-separated; "": those of the config.
        force: evaluate again even if the ledgers exist.
        unfinished: members of the targets that are not trained.
    """

    run_dir: RunDir
    overrides: tuple[str, ...] = ()
    data: str = ""
    split: str = ""
    views: str = ""
    force: bool = False
    unfinished: tuple[str, ...] = ()

    @property
    def data_name(self) -> str:
        """Name of the data in ledger names, if they are not the run's own; "": named after their folder."""
        return parse_data_option(self.data)[0]

    def config(self) -> Config:
        """Return the config of the run with the request's changes; ConfigError as `evaluation_config`."""
        values: dict[str, Any] = {"data.shards": parse_data_option(self.data)[1]} if self.data else {}
        for key, text in (("splits", self.split), ("views", self.views)):
            if text:
                values[f"evaluate.{key}"] = split_at_commas(text)
        return evaluation_config(self.run_dir, self.overrides, values)

    @property
    def arguments(self) -> list[str]:
        """The command-line arguments that make the same request to another process."""
        options = [("--data", self.data), ("--split", self.split), ("--views", self.views)]
        given = [argument for option, value in options if value for argument in (option, value)]
        return [str(self.run_dir.path), *self.overrides, *given, *(["--force"] if self.force else [])]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that `build_request` reads."""
    parser.add_argument(
        "targets",
        nargs="+",
        metavar="RUN|CHECKPOINT|BUNDLE|key=value",
        help="a run directory, the name of one under runs/, its config file, a checkpoint directory or a bundle; several "
        "are evaluated as one ensemble; key=value overrides the evaluate section",
    )
    parser.add_argument(
        "--data",
        default="",
        metavar="[NAME=]SHARDS",
        help="other packed data (default: the run's own); their ledger is named SPLIT@NAME",
    )
    parser.add_argument("--split", default="", metavar="A,B", help="splits to evaluate (default: evaluate.splits)")
    parser.add_argument("--views", default="", metavar="A,B", help="test-time views (default: evaluate.views)")
    parser.add_argument("--name", default="", help="name of the run that several targets become (default: their names)")
    parser.add_argument("--force", action="store_true", help="evaluate again even if the ledgers exist")


def build_request(options: argparse.Namespace) -> EvaluationRequest:
    """Build the request from parsed arguments; several targets are assembled into one run.

    Raises:
        ConfigError: there is no target, or one that is neither a run nor a checkpoint nor a bundle.
        ChoralError: as `resolve_targets`.
    """
    overrides = [text for text in options.targets if _OVERRIDE.match(text) and not Path(text).exists()]
    targets = [text for text in options.targets if text not in overrides]
    if not targets:
        raise ConfigError("expected a run, a checkpoint or a bundle to evaluate, such as runs/NAME")
    folder, unfinished = resolve_targets(targets, options.name, parse_data_option(options.data)[1])
    return EvaluationRequest(
        folder, tuple(overrides), options.data, options.split, options.views, options.force, tuple(unfinished)
    )


def evaluation_config(run_dir: RunDir, overrides: Sequence[str], values: Mapping[str, Any] | None = None) -> Config:
    """Return the config of a run with changed evaluation settings.

    Args:
        run_dir: of the run.
        overrides: "key=value" each.
        values: further overrides, already parsed.

    Raises:
        ConfigError: an override would have changed the training.
    """
    config = run_dir.config()
    changes = {**dict(parse_override(text) for text in overrides), **(values or {})}
    changed = with_overrides(config, changes, where=str(run_dir.path))
    for line in binding_difference(config, changed):
        if not line.startswith(_ALLOWED):
            raise ConfigError(
                f"{line}: an evaluation changes only evaluate.*, train.precision and data.shards; for other changes, "
                "train another run"
            )
    return changed
