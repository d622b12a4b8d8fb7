"""What all jobs on a cluster have in common, in one small file; `slurm/site.yaml` shows every key."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from choral.config.fields import check
from choral.config.files import load_typed
from choral.core.errors import ConfigError

USER_FILE = Path("~/.config/choral/site.yaml")
_OPTION = re.compile(r"[a-z][a-z0-9-]*")
_MODULE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+/@-]*")
_OURS = (
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


@dataclass(frozen=True, kw_only=True)
class Site:
    """Settings of a cluster; options of the command line win over them."""

    account: str = ""
    partition: str = ""
    qos: str = ""
    constraint: str = ""
    modules: tuple[str, ...] = ()
    """Names for `module load`, in this order."""
    setup: tuple[str, ...] = ()
    """Lines of bash that run in each job before anything else."""
    container: str = ""
    """A command that stands before `choral` in jobs, such as `apptainer exec --nv image.sif`; words are split as a shell
    does, and nothing in them is expanded."""
    scratch: str = ""
    """A folder on a disk of the node's own: TMPDIR, and the place of the decoded cache. $NAME is expanded on the node."""
    options: Mapping[str, str] = field(default_factory=dict)
    """Further options of sbatch, without the dashes; an empty value is an option without one."""

    def __post_init__(self) -> None:
        for name in self.modules:
            check(_MODULE.fullmatch(name) is not None, "modules", f"'{name}' is no module name")
        for key, value in self.options.items():
            check(
                _OPTION.fullmatch(key) is not None, f"options.{key}", "expected a long option of sbatch, without dashes"
            )
            check(key not in _OURS, f"options.{key}", "choral sets this one itself")
            check(isinstance(value, str), f"options.{key}", f"expected one value, got '{value}'")
        for line in (*self.setup, self.container, self.scratch):
            check("\n" not in line, "setup", f"expected one line each, got '{line}'")
        try:
            shlex.split(self.container)
        except ValueError as error:
            raise ConfigError(f"container: '{self.container}': {error}") from None


def load_site(given: Path | None) -> Site:
    """Return the site settings: of the given file, else of $CHORAL_SITE, else of ~/.config/choral/site.yaml, else none.

    Raises:
        ConfigError: the file is missing, or a key or value in it is wrong; both are named.
    """
    named = given or os.environ.get("CHORAL_SITE")
    path = Path(named) if named else USER_FILE.expanduser()
    return load_typed(path, Site) if named or path.is_file() else Site()
