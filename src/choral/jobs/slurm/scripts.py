"""sbatch scripts: the templates of the repository's slurm/ with the settings of a submission filled in.

A template also works by hand, unchanged. Two parts are replaced: `#SBATCH` lines are overridden or added, and the lines
between "# Filled in by" and "# To here." become the settings of the site and the submission. Names and paths never become
part of a script: they are passed as its arguments.
"""

from __future__ import annotations

import importlib.util
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from choral.config.fields import check
from choral.jobs.slurm.site import Site

TEMPLATES_DIR = Path(__file__).parent / "templates"
_SAVE_S = 120  # how long before the time limit a job saves; the same number as in --signal of the templates
_SETTINGS_BLOCK = re.compile(r"(# Filled in by `choral submit`:\n).*?(# To here\.\n)", re.DOTALL)
_NEEDS_NO_QUOTES = re.compile(r"[A-Za-z0-9_.,:/@%+=*-]*")
_JOB_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")
_TIME = re.compile(r"(?:(?P<d>\d+)-)?(?P<a>\d+)(?::(?P<b>\d+))?(?::(?P<c>\d+))?")
_MEMORY = re.compile(r"\d+[KMGT]?")


@dataclass(frozen=True, kw_only=True)
class Resources:
    """The resources of each training job; empty or 0 means the default of the cluster.

    Attributes:
        gpus, cpus, memory: per node.
        nodes: per member.
        time: time limit in a format of sbatch: minutes, H:M:S, D-H and so on.
        max_parallel: how many members run at once; 0 means no limit.
    """

    partition: str = ""
    account: str = ""
    qos: str = ""
    constraint: str = ""
    gpus: int = 0
    cpus: int = 0
    memory: str = ""
    nodes: int = 1
    time: str = ""
    max_parallel: int = 0

    def __post_init__(self) -> None:
        for key in ("gpus", "cpus", "max_parallel"):
            check(getattr(self, key) >= 0, f"--{key.replace('_', '-')}", "expected 0 or more")
        check(self.nodes >= 1, "--nodes", "expected at least 1")
        check(not self.memory or _MEMORY.fullmatch(self.memory) is not None, "--mem", "expected a size such as 32G")

    def sbatch_options(self, site: Site) -> dict[str, str]:
        """Return the options of sbatch: those of the command line, which override those of the site.

        Raises:
            ConfigError: the time limit is invalid or too short.
        """
        command_line = {
            "account": self.account or site.account,
            "partition": self.partition or site.partition,
            "qos": self.qos or site.qos,
            "constraint": self.constraint or site.constraint,
            "nodes": str(self.nodes),
            "gpus-per-node": str(self.gpus or ""),
            "cpus-per-task": str(self.cpus or ""),
            "mem": self.memory,
            "time": self.time,
        }
        options = {**site.options, **{key: value for key, value in command_line.items() if value}}
        if limit := options.get("time", ""):
            check(
                parse_time_limit(limit) >= _SAVE_S + 60,
                "--time",
                f"{limit} is too short: a job saves {_SAVE_S} s before its limit; expected 3 minutes or more",
            )
        return options


def parse_time_limit(time: str) -> int:
    """Return a time limit of sbatch (M, M:S, H:M:S, D-H, D-H:M or D-H:M:S) in seconds.

    Raises:
        ConfigError: the text has none of these formats.
    """
    match = _TIME.fullmatch(time)
    check(match is not None, "--time", f"expected minutes, H:M:S or D-H:M:S, got '{time}'")
    assert match is not None
    a, b, c = (int(match[key] or 0) for key in "abc")
    if match["d"] is not None:
        return 86400 * int(match["d"]) + 3600 * a + 60 * b + c
    return 3600 * a + 60 * b + c if match["c"] is not None else 60 * a + b


def render_training_script(
    name: str, log: Path, options: Mapping[str, str], site: Site, settings: Mapping[str, int]
) -> str:
    """Return the script that trains a member, or a run without members.

    Args:
        name: of the job.
        log: filename pattern for SLURM's own output.
        options: of sbatch, see `Resources.sbatch_options`.
        site: settings of the cluster.
        settings: values of the template's variables: ranks, retries, max_stalls.
    """
    return _render("train.sbatch", {"job-name": name, "output": str(log), **options}, site, settings)


def render_evaluation_script(name: str, log: Path, options: Mapping[str, str], site: Site) -> str:
    """Return the script that evaluates and scores a run on one node; arguments as in `render_training_script`."""
    return _render("evaluate.sbatch", {"job-name": name, "output": str(log), **options, "nodes": "1"}, site, {})


def render_tuning_script(
    name: str, log: Path, options: Mapping[str, str], site: Site, settings: Mapping[str, int]
) -> str:
    """Return the script of a job that runs trials of `choral tune`; arguments as in `render_training_script`."""
    return _render("tune.sbatch", {"job-name": name, "output": str(log), **options, "nodes": "1"}, site, settings)


def _render(template: str, options: Mapping[str, str], site: Site, settings: Mapping[str, int]) -> str:
    check(
        _JOB_NAME.fullmatch(options["job-name"]) is not None, "run", f"'{options['job-name']}' is not a valid job name"
    )
    head: list[str] = []
    body: list[str] = []
    lines: dict[str, str] = {}
    for line in (TEMPLATES_DIR / template).read_text(encoding="utf-8").splitlines(keepends=True):
        if line.startswith("#SBATCH --"):
            key, _, value = line.removeprefix("#SBATCH --").strip().partition("=")
            lines[key] = value
        else:
            (body if lines else head).append(line)
    lines |= {key: _quote_option(key, value) for key, value in options.items()}
    sbatch = [f"#SBATCH --{key}={value}\n" if value else f"#SBATCH --{key}\n" for key, value in lines.items()]
    text, replaced = _SETTINGS_BLOCK.subn(
        lambda match: match[1] + _render_settings(site, settings) + match[2], "".join(body)
    )
    assert replaced == 1, template
    return "".join((*head, *sbatch, text))


def _render_settings(site: Site, settings: Mapping[str, int]) -> str:
    """Return the lines of the settings block: those of the site, then the variables of the submission."""
    lines = [*(f"module load {name} || exit" for name in site.modules), *site.setup]
    if site.scratch:
        lines += [f"export CHORAL_SCRATCH={_quote_keeping_variables(site.scratch)}", "export TMPDIR=$CHORAL_SCRATCH"]
    lines.append(f"choral=({shlex.join(_choral_command(site))})")
    lines += [f"{key}={value}" for key, value in settings.items()]
    return "".join(f"{line}\n" for line in lines)


def _choral_command(site: Site) -> list[str]:
    """Return the command that runs choral in a job: in the container if there is one, else with this Python.

    If this environment has no torch, it cannot train: then it is the `choral` that modules and setup put on the PATH.
    """
    if site.container:
        return [*shlex.split(site.container), "choral"]
    return [sys.executable, "-m", "choral"] if has_torch() else ["choral"]


def has_torch() -> bool:
    """Return whether this environment has torch; that of a login node need not."""
    return importlib.util.find_spec("torch") is not None


def _quote_keeping_variables(text: str) -> str:
    """Return a text quoted for bash, in which only $NAME and ${NAME} are expanded."""
    parts: Sequence[str] = re.split(r"(\$[A-Za-z_]\w*|\$\{[A-Za-z_]\w*\})", text)
    return "".join(
        f'"{part}"' if number % 2 else shlex.quote(part) if part else "" for number, part in enumerate(parts)
    )


def _quote_option(key: str, value: str) -> str:
    """Return a value quoted for a `#SBATCH` line, where SLURM interprets double quotes and backslashes."""
    check(value.isprintable(), f"--{key}", f"unprintable characters in {value!a}")
    if _NEEDS_NO_QUOTES.fullmatch(value):
        return value
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
