"""What is to be probed, as `choral probe` and its ranks read it from the command line."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from choral.config import Config
from choral.config.fields import split_at_commas
from choral.inference.evaluation_request import evaluation_config
from choral.runs.run_dir import RunDir


@dataclass(frozen=True)
class ProbeRequest:
    """A run, and which changes of which of its samples it is asked about.

    Attributes:
        folder: of the run.
        split: such as val.
        families: names; none: all.
        overrides: "key=value" each, of analyze.* and evaluate.*.
        force: probe again what is there.
    """

    folder: RunDir
    split: str = "val"
    families: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()
    force: bool = False

    def config(self) -> Config:
        """Return the config of the run, with what is to be different; ConfigError as `evaluation_config`."""
        return evaluation_config(self.folder, self.overrides)

    @property
    def words(self) -> list[str]:
        """The command line that asks the same of another process."""
        families = ["--families", ",".join(self.families)] if self.families else []
        force = ["--force"] if self.force else []
        return [str(self.folder.path), *self.overrides, "--split", self.split, *families, *force]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Let a parser take what `request_of` reads."""
    parser.add_argument("run", metavar="RUN", help="a run folder, the name of one under runs/, or its config file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as analyze.probe_samples=500")
    parser.add_argument("--split", default="val", help="whose samples are changed (default: %(default)s)")
    parser.add_argument("--families", default="", metavar="A,B", help="kinds of change (default: all)")
    parser.add_argument("--force", action="store_true", help="probe again what is there")


def request_of(options: argparse.Namespace) -> ProbeRequest:
    """Return what parsed arguments ask for; ConfigError where there is no such run."""
    families = tuple(split_at_commas(options.families))
    return ProbeRequest(RunDir.find(options.run), options.split, families, tuple(options.overrides), options.force)
