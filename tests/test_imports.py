"""Imports go one way: a module imports from the rooms before its own, from its own room, and never in a circle."""

from __future__ import annotations

import ast
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


def imports_of(path: Path) -> set[str]:
    """Return the modules below `choral` that a module imports anywhere, also inside functions."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
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
    waiting = {module_name(path): imports_of(path) - {module_name(path)} for path in MODULES}
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
        "inference.trained_models",
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
