"""One cluster for all tests that need one; they are in one file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster, missing


@pytest.fixture(scope="module")  # its variables are not for the tests that follow
def cluster() -> Iterator[Cluster]:
    if reason := missing():
        if "slurm" in os.environ.get("CHORAL_REQUIRE", "").split(","):
            pytest.fail(reason)
        pytest.skip(reason)
    with Cluster() as running, pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(running.conf))
        patch.delenv("CHORAL_SITE", raising=False)
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("ACCELERATE_USE_CPU", "true")  # whatever GPUs this machine has: the cluster's are no real ones
        yield running
    folder = running.folder
    assert not folder.exists()
    left = [entry.parent.name for entry in Path("/proc").glob("[0-9]*/cmdline") if _mentions(entry, str(folder))]
    assert not left


def _mentions(cmdline: Path, text: str) -> bool:
    try:
        return text in cmdline.read_text(errors="replace")
    except OSError:
        return False
