"""One rank without a new process: runs what the launcher would start in the test's process, which is faster."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

import pytest

from choral.runs.run_dir import RunDir

_LAUNCHING_MODULES = ("training", "evaluation", "probes")


def launch_in_process(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Make the workflow run its modules in this process; return the list to which each start is appended."""
    import torch
    from accelerate.state import AcceleratorState

    started: list[str] = []

    def launch(module: str, arguments: Sequence[str], processes: int, folder: RunDir, machines: Any = None) -> int:
        started.append(f"{module} {folder.name}")
        AcceleratorState._reset_state(reset_partial_state=True)  # Accelerate keeps one per process
        code: int = import_module(f"{module}.__main__").main(list(arguments))
        return code

    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    torch.set_num_threads(1)
    for name in _LAUNCHING_MODULES:
        monkeypatch.setattr(f"choral.cli.workflow.{name}.launch", launch)
    return started
