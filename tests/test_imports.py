"""Imports go one way. The levels are those of the layout in the README; a module may import from lower levels alone,
and from its own part."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "choral"
LEVELS = [
    {"errors"},
    {"files", "figures"},
    {"sealed"},
    {"config"},
    {"configfile"},
    {"runfolder"},
    {"checkpoints"},
    {"shards", "jobs", "score"},
    {"inputs"},
    {"runtime", "model", "tracking"},
    {"memory"},
    {"features"},
    {"train", "predict", "show"},
    {"ensemble"},
    {"assess"},
    {"analyze", "export"},
    {"workflow", "serve"},
    {"slurm"},
    {"tune"},
    {"cli"},
    {"__main__"},
]
LEVEL_OF = {part: number for number, parts in enumerate(LEVELS) for part in parts}
MODULES = sorted(SOURCE.rglob("*.py"))


def part_of(path: Path) -> str:
    return path.relative_to(SOURCE).with_suffix("").parts[0]


def imports_of(path: Path) -> set[str]:
    """Return the dotted names below `choral` that a module imports anywhere, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            if node.module == "choral":
                found |= {alias.name for alias in node.names if not alias.name.startswith("__")}
            elif node.module and node.module.startswith("choral."):
                found.add(node.module.removeprefix("choral."))
        elif isinstance(node, ast.Import):
            found |= {alias.name.removeprefix("choral.") for alias in node.names if alias.name.startswith("choral.")}
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_point_down(path: Path) -> None:
    part = part_of(path)
    if part == "__init__":  # what it offers is imported when it is called: see the test of light parts
        return
    for name in imports_of(path):
        other = name.split(".")[0]
        assert other == part or LEVEL_OF[other] < LEVEL_OF[part], f"{part} must not import {name}"


def test_every_part_has_a_level() -> None:
    assert {part_of(path) for path in MODULES} - {"__init__"} == set(LEVEL_OF)


@pytest.mark.parametrize(
    "module",
    [
        "errors",
        "cli",
        "export.bundle",
        "workflow",
        "assess.predictor",
        "config",
        "inputs.sample_weights",
        "predict.voices",
        "shards.pack",
        "jobs.local",
        "score.metrics",
        "assess.answering",
        "analyze.analyse",
        "analyze.probe_curves",
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
        "import choral.train.loop, choral.export.predictor"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
