"""Fixtures for all tests: the toy data, packed, and the command line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from toy_data import CLASSES, COUNTS, Choral, colour_image

if TYPE_CHECKING:
    from choral.core.process_group import Runtime


def pytest_configure() -> None:
    # A shell starts background jobs with SIGINT ignored, nohup all with SIGHUP; children inherit that, and nothing could be
    # interrupted in a test.
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # Minutes of real processes in one file: with two workers, whoever comes first to them must come early.
    slow = ("tests/slurm/test_cluster.py", "tests/test_readme.py")
    items.sort(key=lambda item: not item.nodeid.startswith(slow))
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True)
def handlers_of_signals() -> Iterator[None]:
    """Let each test find signals as a new process does: a `Runtime` in this process takes some over for good."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train/, val/ and test/, each with a folder of PNG images a class."""
    root = tmp_path_factory.mktemp("photos")
    for split, count in COUNTS.items():
        for number in range(count):
            name = list(CLASSES)[number % 3]
            path = root / split / name / f"{split} {number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            colour_image(CLASSES[name], seed=number + 1000 * len(split)).save(path)
    return root


@pytest.fixture(scope="session")
def shards(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The photos, packed in shards of at most 8 samples."""
    from choral.data.packing.options import PackOptions
    from choral.data.packing.pack import pack

    out = tmp_path_factory.mktemp("packed") / "shards"
    pack(str(photos), out, PackOptions(samples_per_shard=8, processes=1))
    return out


@pytest.fixture
def config_file(shards: Path, tmp_path: Path) -> Path:
    """A config of a tiny network (BatchNorm, no dropout) on the shards: seconds to train on a CPU."""
    path = tmp_path / "toy.yaml"
    path.write_text(
        f"data: {{shards: '{shards}', image_size: 32, eval_crop: resized}}\n"
        "model: {name: test_resnet, weights: none}\n"
        "augment: {crop_scale: [0.5, 1], vflip: 0.5, rot90: true, brightness: 0.2}\n"
        "train: {steps: 10, batch_size: 12, lr: 3e-2, optimizer: sgd, log_every_steps: 2, save_every_steps: 2,"
        " timeout_s: 120}\n"
        "evaluate: {views: [d4], batch_size: 4}\n"
        "tracking: {wandb: 'off'}\n",
        encoding="utf-8",
    )
    return path


@pytest.fixture
def choral(tmp_path: Path) -> Choral:
    """Run `choral ARGUMENTS` in the test's folder, as a user would, and return what it printed and its exit status."""

    def run(*arguments: object, timeout: float = 240, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "choral", *map(str, arguments)],
            cwd=tmp_path,
            env={**os.environ, "COLUMNS": "120", "OMP_NUM_THREADS": "1", **env},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    return run


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runtime:
    """One rank, in this process."""
    import torch
    from accelerate.state import AcceleratorState

    from choral.core.process_group import Runtime

    AcceleratorState._reset_state(reset_partial_state=True)  # Accelerate keeps one for the process
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    torch.set_num_threads(1)
    return Runtime("no", 1, 60, tmp_path / "run" / "stop")
