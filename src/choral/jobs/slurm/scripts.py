"""sbatch scripts: the templates of the repository's slurm/, with the options of a submission filled in.

A template works by hand as it is. Two parts of it are replaced: its `#SBATCH` lines get ours added or put in their
place, and the lines from "# Filled in by" to "# To here." get the site's. Names and paths never become part of a script:
they are its arguments.
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

TEMPLATES = Path(__file__).parent / "templates"
_SAVE_S = 120  # before the time limit; as the templates' --signal says
_FILLED = re.compile(r"(# Filled in by `choral submit`:\n).*?(# To here\.\n)", re.DOTALL)
_PLAIN = re.compile(r"[A-Za-z0-9_.,:/@%+=*-]*")
_JOB_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")
_TIME = re.compile(r"(?:(?P<d>\d+)-)?(?P<a>\d+)(?::(?P<b>\d+))?(?::(?P<c>\d+))?")
_MEMORY = re.compile(r"\d+[KMGT]?")


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What each training job asks for; empty or 0 is what the cluster gives by itself.

    Attributes:
        gpus, cpus, memory: of each node.
        nodes: of each member.
        time: as sbatch takes it: minutes, H:M:S, D-H and so on.
        max_parallel: members that run at once; 0: as many as the cluster lets.
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

    def options(self, site: Site) -> dict[str, str]:
        """Return the options of sbatch, those of the site where the command line has none.

        Raises:
            ConfigError: the time limit, whosoever it is, is none or too short.
        """
        given = {
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
        options = {**site.options, **{key: value for key, value in given.items() if value}}
        if limit := options.get("time", ""):
            check(
                seconds_of(limit) >= _SAVE_S + 60,
                "--time",
                f"{limit} is too short: a job saves {_SAVE_S} s before its limit; expected 3 minutes or more",
            )
        return options


def seconds_of(time: str) -> int:
    """Return a time limit of sbatch in seconds: M, M:S, H:M:S, D-H, D-H:M or D-H:M:S.

    Raises:
        ConfigError: it is none.
    """
    found = _TIME.fullmatch(time)
    check(found is not None, "--time", f"expected minutes, H:M:S or D-H:M:S, got '{time}'")
    assert found is not None
    a, b, c = (int(found[key] or 0) for key in "abc")
    if found["d"] is not None:
        return 86400 * int(found["d"]) + 3600 * a + 60 * b + c
    return 3600 * a + 60 * b + c if found["c"] is not None else 60 * a + b


def training_script(name: str, log: Path, options: Mapping[str, str], site: Site, settings: Mapping[str, int]) -> str:
    """Return the script that trains a member, or a run without members.

    Args:
        name: of the job.
        log: of SLURM's own output; a pattern.
        options: of sbatch.
        site: of the cluster.
        settings: variables of the template's own: ranks, retries.
    """
    return _fill("train.sbatch", {"job-name": name, "output": str(log), **options}, site, settings)


def evaluation_script(name: str, log: Path, options: Mapping[str, str], site: Site) -> str:
    """Return the script that evaluates and scores a run, on one node; arguments as of `training_script`."""
    return _fill("evaluate.sbatch", {"job-name": name, "output": str(log), **options, "nodes": "1"}, site, {})


def tuning_script(name: str, log: Path, options: Mapping[str, str], site: Site, settings: Mapping[str, int]) -> str:
    """Return the script of a job that works on a search of settings; arguments as of `training_script`."""
    return _fill("tune.sbatch", {"job-name": name, "output": str(log), **options, "nodes": "1"}, site, settings)


def _fill(template: str, options: Mapping[str, str], site: Site, settings: Mapping[str, int]) -> str:
    check(_JOB_NAME.fullmatch(options["job-name"]) is not None, "run", f"'{options['job-name']}' is no name for a job")
    head: list[str] = []
    body: list[str] = []
    lines: dict[str, str] = {}
    for line in (TEMPLATES / template).read_text(encoding="utf-8").splitlines(keepends=True):
        if line.startswith("#SBATCH --"):
            key, _, value = line.removeprefix("#SBATCH --").strip().partition("=")
            lines[key] = value
        else:
            (body if lines else head).append(line)
    lines |= {key: _quoted(key, value) for key, value in options.items()}
    sbatch = [f"#SBATCH --{key}={value}\n" if value else f"#SBATCH --{key}\n" for key, value in lines.items()]
    text, filled = _FILLED.subn(lambda found: found[1] + _preamble(site, settings) + found[2], "".join(body))
    assert filled == 1, template
    return "".join((*head, *sbatch, text))


def _preamble(site: Site, settings: Mapping[str, int]) -> str:
    """Return the lines that a site and a submission put before a template's own."""
    lines = [*(f"module load {name} || exit" for name in site.modules), *site.setup]
    if site.scratch:
        lines += [f"export CHORAL_SCRATCH={_with_variables(site.scratch)}", "export TMPDIR=$CHORAL_SCRATCH"]
    lines.append(f"choral=({shlex.join(_choral(site))})")
    lines += [f"{key}={value}" for key, value in settings.items()]
    return "".join(f"{line}\n" for line in lines)


def _choral(site: Site) -> list[str]:
    """Return the words that call choral in a job: those of the container, else of the environment that submits.

    If that one has no torch, it trains nothing: then the `choral` that a node finds on its PATH, after modules and setup.
    """
    if site.container:
        return [*shlex.split(site.container), "choral"]
    return [sys.executable, "-m", "choral"] if has_torch() else ["choral"]


def has_torch() -> bool:
    """Whether choral could train in this environment; a login node's need not."""
    return importlib.util.find_spec("torch") is not None


def _with_variables(text: str) -> str:
    """Return bash for a text in which $NAME and ${NAME} are variables, and nothing else means anything."""
    parts: Sequence[str] = re.split(r"(\$[A-Za-z_]\w*|\$\{[A-Za-z_]\w*\})", text)
    return "".join(
        f'"{part}"' if number % 2 else shlex.quote(part) if part else "" for number, part in enumerate(parts)
    )


def _quoted(key: str, value: str) -> str:
    """Return a value for a `#SBATCH` line; SLURM knows double quotes and backslashes there."""
    check(value.isprintable(), f"--{key}", f"unprintable characters in {value!a}")
    if _PLAIN.fullmatch(value):
        return value
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
