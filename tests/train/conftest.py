"""One rank, in this process."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from choral.runtime import Runtime


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runtime:
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)  # Accelerate keeps one for the process
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    torch.set_num_threads(1)
    return Runtime("no", 1, 60, tmp_path / "run" / "stop")
