"""Ranks without processes: what the launcher would start runs here, one rank, so that a test saves the starts."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

import pytest

from choral.runs.run_dir import RunDir

_STARTING = ("training", "evaluation", "probing")


def launch_in_process(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let the steps of the workflow run their modules here; return the list to which each start is appended."""
    import torch
    from accelerate.state import AcceleratorState

    started: list[str] = []

    def launch(module: str, arguments: Sequence[str], processes: int, folder: RunDir, machines: Any = None) -> int:
        started.append(f"{module} {folder.name}")
        AcceleratorState._reset_state(reset_partial_state=True)  # Accelerate keeps one for the process
        code: int = import_module(f"{module}.__main__").main(list(arguments))
        return code

    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    torch.set_num_threads(1)
    for name in _STARTING:
        monkeypatch.setattr(f"choral.cli.workflow.{name}.launch", launch)
    return started
