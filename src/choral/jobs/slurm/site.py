"""Settings shared by all jobs on a cluster, in one small file; `slurm/site.yaml` shows every key."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from choral.config.fields import check
from choral.config.files import load_section
from choral.config.section import Section
from choral.core.errors import ConfigError

USER_FILE = Path("~/.config/choral/site.yaml")
_OPTION = re.compile(r"[a-z][a-z0-9-]*")
_MODULE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+/@-]*")
_RESERVED_OPTIONS = (
    *(
        "array",
        "chdir",
        "dependency",
        "job-name",
        "kill-on-invalid-dep",
        "nodes",
        "ntasks",
        "ntasks-per-node",
        "open-mode",
    ),
    *("output", "parsable", "requeue", "no-requeue", "signal", "wait", "wrap"),
)


class Site(Section, frozen=True):
    """Settings of a cluster; options of the command line override them."""

    account: str = ""
    partition: str = ""
    qos: str = ""
    constraint: str = ""
    modules: tuple[str, ...] = ()
    """Names for `module load`, in this order."""
    setup: tuple[str, ...] = ()
    """Lines of bash that run in each job, after the modules are loaded and before anything else of choral."""
    container: str = ""
    """A command that is put before `choral` in jobs, such as `apptainer exec --nv image.sif`; split like a shell command,
    without any expansion."""
    scratch: str = ""
    """A directory on the node's local disk, for TMPDIR and the decoded cache. $NAME is expanded on the node."""
    options: Mapping[str, str] = Field(default_factory=dict)
    """Further options of sbatch, without the dashes; an empty value stands for an option that takes none."""

    @model_validator(mode="after")
    def _check_values(self) -> Self:
        for name in self.modules:
            check(_MODULE.fullmatch(name) is not None, "modules", f"'{name}' is not a module name")
        for key in self.options:
            check(
                _OPTION.fullmatch(key) is not None, f"options.{key}", "expected a long option of sbatch, without dashes"
            )
            check(key not in _RESERVED_OPTIONS, f"options.{key}", "choral sets this option itself")
        for line in (*self.setup, self.container, self.scratch):
            check("\n" not in line, "setup", f"expected a single line, got '{line}'")
        try:
            shlex.split(self.container)
        except ValueError as error:
            raise ConfigError(f"container: '{self.container}': {error}") from None
        return self


def load_site(path: Path | None) -> Site:
    """Return the settings in `path`, else in $CHORAL_SITE, else in ~/.config/choral/site.yaml, else the defaults.

    Raises:
        ConfigError: the file is missing, or has an unknown key or a wrong value; the message names both.
    """
    explicit = path or os.environ.get("CHORAL_SITE")
    file = Path(explicit) if explicit else USER_FILE.expanduser()
    return load_section(file, Site) if explicit or file.is_file() else Site()
