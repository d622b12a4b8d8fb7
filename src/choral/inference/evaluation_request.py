"""What an evaluation is asked to do, as `choral evaluate` and launch/evaluate.py read it from the command line."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from choral.config import Config, binding_difference
from choral.config.fields import split_at_commas
from choral.config.files import parse_override, with_overrides
from choral.core.errors import ConfigError
from choral.inference.assembled_run import folder_of
from choral.inference.external_data import named_data
from choral.runs.run_dir import RunDir

_OVERRIDE = re.compile(r"[a-z_]+(\.[A-Za-z0-9_]+)*=")
_ALLOWED = ("evaluate.", "train.precision:", "data.shards:", "data.on_bad_sample:", "data.max_bad_fraction:")


@dataclass(frozen=True)
class Request:
    """A run, how it is evaluated, and on which data.

    Attributes:
        folder: of the run, which may have been assembled for this.
        overrides: "key=value" each.
        data: [NAME=]FOLDER of other data than the run's own; "": those.
        split, views: separated by commas; "": those of the config.
        force: evaluate again what is there.
        unfinished: members of targets that are not trained.
    """

    folder: RunDir
    overrides: tuple[str, ...] = ()
    data: str = ""
    split: str = ""
    views: str = ""
    force: bool = False
    unfinished: tuple[str, ...] = ()

    @property
    def data_name(self) -> str:
        """What the data are to be called where they are not the run's own; "": as their folder."""
        return named_data(self.data)[0]

    def config(self) -> Config:
        """Return the config of the run, with what is to be different; ConfigError as `evaluation_config`."""
        values: dict[str, Any] = {"data.shards": named_data(self.data)[1]} if self.data else {}
        for key, text in (("splits", self.split), ("views", self.views)):
            if text:
                values[f"evaluate.{key}"] = split_at_commas(text)
        return evaluation_config(self.folder, self.overrides, values)

    @property
    def words(self) -> list[str]:
        """The command line that asks the same of another process."""
        options = [("--data", self.data), ("--split", self.split), ("--views", self.views)]
        given = [word for option, value in options if value for word in (option, value)]
        return [str(self.folder.path), *self.overrides, *given, *(["--force"] if self.force else [])]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Let a parser take what `request_of` reads."""
    parser.add_argument(
        "words",
        nargs="+",
        metavar="RUN|CHECKPOINT|BUNDLE|key=value",
        help="a run folder, the name of one under runs/, its config file, a checkpoint folder or a bundle; several are "
        "evaluated as one ensemble; key=value of the evaluate section",
    )
    parser.add_argument(
        "--data",
        default="",
        metavar="[NAME=]SHARDS",
        help="other packed data (default: the run's own); their ledger is called SPLIT@NAME",
    )
    parser.add_argument("--split", default="", metavar="A,B", help="what is evaluated (default: evaluate.splits)")
    parser.add_argument("--views", default="", metavar="A,B", help="test-time views (default: evaluate.views)")
    parser.add_argument("--name", default="", help="of the run that several targets become (default: their names)")
    parser.add_argument("--force", action="store_true", help="evaluate again what is there")


def request_of(options: argparse.Namespace) -> Request:
    """Return what parsed arguments ask for; several targets are assembled.

    Raises:
        ConfigError: no target, or one that is neither a run nor a checkpoint nor a bundle.
        ChoralError: as `folder_of`.
    """
    overrides = [word for word in options.words if _OVERRIDE.match(word) and not Path(word).exists()]
    targets = [word for word in options.words if word not in overrides]
    if not targets:
        raise ConfigError("expected a run, a checkpoint or a bundle to evaluate, such as runs/NAME")
    folder, unfinished = folder_of(targets, options.name, named_data(options.data)[1])
    return Request(
        folder, tuple(overrides), options.data, options.split, options.views, options.force, tuple(unfinished)
    )


def evaluation_config(folder: RunDir, overrides: Sequence[str], values: Mapping[str, Any] | None = None) -> Config:
    """Return the config of a run with another way to evaluate.

    Args:
        folder: of the run.
        overrides: "key=value" each.
        values: more of them, read already.

    Raises:
        ConfigError: an override that would have changed the training.
    """
    config = folder.config()
    changes = {**dict(parse_override(text) for text in overrides), **(values or {})}
    changed = with_overrides(config, changes, where=str(folder.path))
    for line in binding_difference(config, changed):
        if not line.startswith(_ALLOWED):
            raise ConfigError(
                f"{line}: an evaluation changes evaluate.*, train.precision and data.shards; for the rest, train another run"
            )
    return changed
