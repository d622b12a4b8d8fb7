"""Imports go one way: a module imports from the rooms before its own, from its own room, and never in a circle."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "choral"
ROOMS = [
    "core",
    "config",
    "runs",
    "metrics",
    "tracking",
    "jobs",
    "data.shards",
    "data.packing",
    "data.augment",
    "data.loading",
    "models",
    "training",
    "inference",
    "ensembles",
    "scoring",
    "scoring.scoreboard",
    "analysis",
    "deploy",
    "tuning",
    "cli.workflow",
    "cli",
]
LEVEL_OF = {room: level for level, room in enumerate(ROOMS)}
MODULES = sorted(SOURCE.rglob("*.py"))


def module_name(path: Path) -> str:
    """Return the dotted name of a module below `choral`; "" for `choral` itself."""
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {module_name(path) for path in MODULES}


def room_of(module: str) -> str | None:
    """Return the innermost room that holds a module; None: the package itself, and packages that only hold rooms."""
    parts = module.split(".")
    prefixes = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((prefix for prefix in prefixes if prefix in LEVEL_OF), None)


def imports_of(path: Path, typing: bool = True) -> set[str]:
    """Return the modules below `choral` that a module imports anywhere, also inside functions.

    Without `typing`, imports under `if TYPE_CHECKING:` do not count: they are never executed.
    """
    found: set[str] = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typed = [node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)]
    skipped = {id(inner) for node in typed for inner in ast.walk(node)} if not typing else set()
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            if node.module == "choral" or (node.module or "").startswith("choral."):
                package = (node.module or "").removeprefix("choral").removeprefix(".")
                for alias in node.names:
                    name = f"{package}.{alias.name}".removeprefix(".")
                    found.add(name if name in NAMES else package)
        elif isinstance(node, ast.Import):
            found |= {alias.name.removeprefix("choral.") for alias in node.names if alias.name.startswith("choral.")}
    return found - {""}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_point_down(path: Path) -> None:
    room = room_of(module_name(path))
    if room is None:  # `choral` and `choral.__main__` open the house: see the test of light parts
        return
    for name in imports_of(path):
        other = room_of(name)
        assert other is not None, f"{name} stands in no room"
        assert LEVEL_OF[other] <= LEVEL_OF[room], f"{room} must not import {name}"


def test_every_module_stands_in_a_room() -> None:
    loose = {name for name in NAMES if room_of(name) is None}
    assert loose == {"", "__main__", "data", "deploy"} - {"deploy"}


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Within a room, too; a package's `__init__` counts as the package."""
    waiting = {module_name(path): imports_of(path, typing=False) - {module_name(path)} for path in MODULES}
    done: set[str] = set()
    while ready := {name for name, needed in waiting.items() if needed <= done}:
        done |= ready
        waiting = {name: needed for name, needed in waiting.items() if name not in ready}
    circles = {name: sorted(needed - done) for name, needed in waiting.items()}
    assert not circles, f"modules of a circle, or that import one: {circles}"


@pytest.mark.parametrize(
    "module",
    [
        "core.errors",
        "cli",
        "deploy.bundle.read",
        "cli.workflow",
        "scoring.predictor",
        "config",
        "data.loading.boosting_weights",
        "inference.run_models",
        "data.packing.pack",
        "jobs.local",
        "metrics.per_sample",
        "scoring.apply_policy",
        "analysis.run_analysis",
        "analysis.probe_curves",
    ],
)
def test_light_parts_do_not_import_torch(module: str) -> None:
    code = f"import sys, choral.{module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_importing_the_network_part_makes_no_connection() -> None:
    code = (
        "import socket\n"
        "def refuse(*a, **k): raise SystemExit('connected')\n"
        "socket.socket.connect = refuse\n"
        "socket.create_connection = refuse\n"
        "import choral.training.loop, choral.deploy.bundle.predictor"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def modules_after(*arguments: str, folder: Path | None = None) -> set[str]:
    """Return the top-level modules that `choral ARGUMENTS` has imported by the time it ends."""
    code = (
        "import sys\nfrom choral.cli import main\n"
        "try: status = main(sys.argv[1:])\nexcept SystemExit as end: status = end.code\n"
        "print(status, *sorted({name.partition('.')[0] for name in sys.modules}), file=sys.stderr)"
    )
    command = [sys.executable, "-c", code, *arguments]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    status, *found = result.stderr.splitlines()[-1].split()
    assert status == "0", result.stderr
    return set(found)


def test_version_and_help_import_nothing_heavy() -> None:
    heavy = {"numpy", "torch", "pyarrow", "rich", "pydantic", "yaml", "matplotlib", "jinja2"}
    for arguments in (["--version"], ["--help"]):
        assert not modules_after(*arguments) & heavy


def test_config_imports_neither_numpy_nor_torch() -> None:
    config = SOURCE.parents[1] / "configs" / "elpv-demo.yaml"
    for arguments in (["config", str(config)], ["config", "--schema"], ["train", "--help"]):
        assert not modules_after(*arguments) & {"torch", "matplotlib"}
    assert not modules_after("config", str(config)) & {"numpy", "torch", "pyarrow", "rich", "matplotlib", "jinja2"}


def test_tables_import_no_torch(tmp_path: Path) -> None:
    """`ls`, `score` and `scores` read files: no torch; and `score` no web page."""
    shutil.copytree(SOURCE.parents[1] / "tests" / "fixtures" / "run_before_rooms", tmp_path, dirs_exist_ok=True)
    for arguments in (["ls", "shards"], ["score", "pair"], ["scores", "colours"], ["status", "pair"]):
        assert not modules_after(*arguments, folder=tmp_path) & {"torch", "timm", "accelerate"}, arguments


@pytest.mark.parametrize("arguments", [["train"], ["ensemble"], ["run"]])
def test_processes_that_wait_for_training_hold_no_torch(arguments: list[str], config_file: Path) -> None:
    """The process that starts ranks or members, here to the end of a training of two steps."""
    folder = config_file.parent
    members = [] if arguments == ["train"] else ["ensemble.members=[{name: a}, {name: b, set: {seed: 1}}]"]
    found = modules_after(*arguments, str(config_file), "train.steps=2", *members, folder=folder)
    assert not found & {"torch", "timm", "accelerate"}
