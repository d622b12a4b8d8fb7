"""The request of `choral probe`, as the verb and its ranks parse it from the command line."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from choral.config import Config
from choral.config.text import split_at_commas
from choral.inference.evaluation_request import evaluation_config
from choral.runs.run_dir import RunDir


@dataclass(frozen=True)
class ProbeRequest:
    """Which samples of a run are probed, with which families.

    Attributes:
        folder: of the run.
        split: such as val.
        families: names; empty: all.
        overrides: "key=value" each, of analyze.* and evaluate.*.
        force: probe again even if the split has been probed.
    """

    folder: RunDir
    split: str = "val"
    families: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()
    force: bool = False

    def config(self) -> Config:
        """Return the config of the run with the overrides; ConfigError as `evaluation_config`."""
        return evaluation_config(self.folder, self.overrides)

    @property
    def arguments(self) -> list[str]:
        """The same request as command-line arguments."""
        families = ["--families", ",".join(self.families)] if self.families else []
        force = ["--force"] if self.force else []
        return [str(self.folder.path), *self.overrides, "--split", self.split, *families, *force]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that `parse_request` reads."""
    parser.add_argument("run", metavar="RUN", help="a run directory, the name of one under runs/, or its config file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as analyze.probe_samples=500")
    parser.add_argument("--split", default="val", help="split to probe (default: %(default)s)")
    parser.add_argument("--families", default="", metavar="A,B", help="families of perturbations (default: all)")
    parser.add_argument("--force", action="store_true", help="probe again even if the split has been probed")


def parse_request(options: argparse.Namespace) -> ProbeRequest:
    """Return the request of parsed arguments; ConfigError where there is no such run."""
    families = tuple(split_at_commas(options.families))
    return ProbeRequest(RunDir.find(options.run), options.split, families, tuple(options.overrides), options.force)
