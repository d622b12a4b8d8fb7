"""The largest batch: the search with an injected `fits`, probes on a CPU, stored results, out-of-memory errors."""

from __future__ import annotations

import json
import mmap
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from choral.config import Config, DataConfig, TrainConfig
from choral.config.files import load_config
from choral.core.errors import ConfigError, OutOfMemory
from choral.core.process_group import Runtime
from choral.inference import auto_batch_size as batch_size_module
from choral.inference.evaluation_pass import evaluate
from choral.inference.run_models import find_trained_models
from choral.runs import memory
from choral.runs.memory import MemoryProbe, doubling_sizes, explain_out_of_memory, find_largest_fitting
from choral.runs.run_dir import RunDir
from choral.training.auto_micro_batch import accumulation_candidates, resolve_micro_batch
from choral.training.loop import train
from choral.training.trainer import Trainer
from toy_data import make_run_dir

CPU = torch.device("cpu")
AUTO = ["train.accumulate_steps=auto"]
EXHAUSTED = (
    "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate"
)


def test_sizes_double_and_the_search_ends_at_the_first_that_does_not_fit() -> None:
    assert [doubling_sizes(maximum) for maximum in (1, 2, 3, 8, 10)] == [
        [1],
        [1, 2],
        [1, 2, 3],
        [1, 2, 4, 8],
        [1, 2, 4, 8, 10],
    ]
    tried_sizes: list[int] = []

    def fits(size: int) -> bool:
        tried_sizes.append(size)
        return size <= 5

    assert find_largest_fitting(doubling_sizes(64), fits) == 4 and tried_sizes == [1, 2, 4, 8]
    assert find_largest_fitting(doubling_sizes(5), fits) == 5
    assert find_largest_fitting([6, 7], fits) == 0


@pytest.mark.parametrize(
    ("batch", "lanes", "ranks", "steps"),
    [
        (12, 1, 1, [6, 4, 3, 2, 1]),
        (12, 2, 1, [6, 3, 2, 1]),
        (12, 1, 3, [2, 1]),
        (7, 1, 1, [1]),
        (4, 4, 4, [1]),
        (1, 1, 1, [1]),
    ],
)
def test_micro_batches_divide_the_batch_and_its_lanes(batch: int, lanes: int, ranks: int, steps: list[int]) -> None:
    train = TrainConfig(batch_size=batch, accumulate_steps="auto")
    assert accumulation_candidates(Config(data=DataConfig(shards="s", lanes=lanes), train=train), ranks) == steps


def test_a_probe_on_a_cpu_never_runs_a_batch_that_would_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda: 600e6)  # of which 0.7 may be taken
    tried: list[int] = []

    def work(count: int) -> None:
        tried.append(count)
        with mmap.mmap(-1, count * 10_000_000) as pages:  # which the system has back at once, unlike what malloc keeps
            np.frombuffer(pages, np.int8)[:] = 1

    assert find_largest_fitting(doubling_sizes(64), MemoryProbe(work, CPU).fits) == 32  # 320 MB; 640 are not tried
    assert tried == [1, 2, 4, 8, 16, 32]
    tried.clear()
    assert find_largest_fitting(doubling_sizes(64), MemoryProbe(work, CPU, share=0.25).fits) == 8 and max(tried) == 8


def test_a_probe_returns_false_when_out_of_memory_and_raises_other_errors() -> None:
    def exhausted(count: int) -> None:
        raise RuntimeError(EXHAUSTED)

    def broken(count: int) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    assert not MemoryProbe(exhausted, CPU).fits(1)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        MemoryProbe(broken, CPU).fits(1)
    with (
        pytest.raises(OutOfMemory, match=r"out of memory with 8 images at a time \(some.key\): lower it \(.*you tried"),
        explain_out_of_memory(8, "some.key", "lower it"),
    ):
        exhausted(8)
    with pytest.raises(OutOfMemory, match="CUDA out of memory"), explain_out_of_memory(8, "some.key", "lower it"):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    with pytest.raises(RuntimeError, match="shapes cannot"), explain_out_of_memory(8, "some.key", "lower it"):
        broken(8)


LIMITED = """
import resource, torch
from torch import nn
from choral.runs.memory import MemoryProbe, doubling_sizes, explain_out_of_memory, find_largest_fitting, _read_kernel_field
network = nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.Flatten(), nn.LazyLinear(1))
def work(count):
    network(torch.randn(count, 3, 64, 64)).sum().backward()
work(1)  # whatever is allocated once
resource.setrlimit(resource.RLIMIT_AS, (int(_read_kernel_field("/proc/self/status", "VmSize")) + (400 << 20),) * 2)
found = find_largest_fitting(doubling_sizes(1 << 20), MemoryProbe(work, torch.device("cpu")).fits)
print(found, flush=True)
for _ in range(3):
    work(found)
with explain_out_of_memory(16 * found, "train.batch_size: 64", "set train.accumulate_steps: auto"):
    work(16 * found)
"""


def test_under_a_real_limit_the_size_found_works_and_a_larger_one_raises_out_of_memory() -> None:
    result = subprocess.run([sys.executable, "-c", LIMITED], capture_output=True, text=True, timeout=120)
    found = int(result.stdout.split()[0])
    assert 8 <= found <= 256 and found & (found - 1) == 0
    last = result.stderr.strip().splitlines()[-1]
    assert (
        f"OutOfMemory: out of memory with {16 * found} images at a time (train.batch_size: 64): set train.acc" in last
    )


def test_micro_batches_are_measured_once_and_stored(
    config_file: Path, tmp_path: Path, run: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, config, tried_sizes = make_run_dir(tmp_path / "run"), load_config(config_file, AUTO), list[int]()

    def fits(trial: MemoryProbe, size: int) -> bool:
        tried_sizes.append(size)
        return size <= 4

    monkeypatch.setattr(MemoryProbe, "fits", fits)
    resolved = resolve_micro_batch(config, folder, run)
    assert resolved == config.replace(train=config.train.replace(accumulate_steps=3))  # 4 of 12
    assert tried_sizes == [2, 3, 4, 6] and run.accelerator.gradient_accumulation_steps == 3
    assert json.loads((folder.path / "batch.json").read_text())["train.accumulate_steps"]["found"] == 3
    monkeypatch.setattr(MemoryProbe, "fits", lambda *_: pytest.fail("it was found before"))
    assert resolve_micro_batch(config, folder, run) == resolved
    both = config.replace(evaluate=config.evaluate.replace(batch_size="auto"))
    assert resolve_micro_batch(both, folder, run).evaluate.batch_size == 4  # validation fits where a micro-batch does
    monkeypatch.setattr(MemoryProbe, "fits", lambda trial, size: False)
    with pytest.raises(
        OutOfMemory, match="auto: out of memory with 2 images per rank, the smallest .* lower data.image_size"
    ):
        resolve_micro_batch(load_config(config_file, [*AUTO, "train.batch_size=8"]), folder, run)
    fixed = load_config(config_file, ["train.accumulate_steps=2"])
    assert resolve_micro_batch(fixed, folder, run) == fixed and run.accelerator.gradient_accumulation_steps == 2


def test_training_with_auto_equals_training_with_the_number_found(
    config_file: Path, tmp_path: Path, run: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = []
    limited = MemoryProbe.fits
    monkeypatch.setattr(MemoryProbe, "fits", lambda trial, size: size <= 6 and limited(trial, size))  # with real steps
    for name, steps in (("auto", "auto"), ("two", "2")):
        run.accelerator.gradient_accumulation_steps = 1
        folder = make_run_dir(tmp_path / name)
        config = load_config(config_file, [f"train.accumulate_steps={steps}", "train.steps=3"])
        folder.store_config(config)
        train(config, folder, run)
        (checkpoint,) = folder.checkpoints.glob("*3")
        weights.append((checkpoint / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]


def test_out_of_memory_in_training_reports_the_batch_and_the_remedy(
    config_file: Path, tmp_path: Path, run: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Trainer(load_config(config_file), RunDir(tmp_path / "run"), run)

    def exhausted(images: torch.Tensor) -> torch.Tensor:
        raise RuntimeError(EXHAUSTED)

    monkeypatch.setattr(trainer, "_forward", exhausted)
    expected = (
        r"12 images at a time \(train.batch_size: 12, train.accumulate_steps: 1\): set train.accumulate_steps: auto"
    )
    with trainer.batches_from(0) as loader, pytest.raises(OutOfMemory, match=expected):
        trainer.train_step(iter(loader), 0)


def test_batch_size_auto_is_rejected_for_training(config_file: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"train.batch_size: auto: the number of samples .* train.accumulate_steps: auto"
    ):
        load_config(config_file, ["train.batch_size=auto"])


def test_evaluation_measures_its_batch_size_and_stores_it(
    config_file: Path, tmp_path: Path, run: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_run_dir(tmp_path / "run")
    config = load_config(config_file, ["train.steps=1", "evaluate.views=hflip", "evaluate.splits=val"])
    folder.store_config(config)
    train(config, folder, run)
    auto = config.replace(evaluate=config.evaluate.replace(batch_size="auto"))
    evaluate(auto, folder, run)  # with real forward passes
    content = json.loads((folder.path / "batch.json").read_text())["evaluate.batch_size"]
    assert content["found"] == batch_size_module.MAX_IMAGES["cpu"] and content["settings"]["networks"] == [
        "test_resnet 32"
    ]
    monkeypatch.setattr(MemoryProbe, "fits", lambda trial, size: size <= 5)
    models, _ = find_trained_models(folder, config)
    assert batch_size_module.find_batch_size(models, config.train.precision, folder, run) == 64  # remembered
    (folder.path / "batch.json").unlink()
    assert batch_size_module.find_batch_size(models, config.train.precision, folder, run) == 4


@pytest.mark.gpu
def test_a_probe_on_a_gpu_frees_all_memory_after_a_failure() -> None:
    device = torch.device("cuda")
    torch.cuda.set_per_process_memory_fraction(0.1)
    total = torch.cuda.get_device_properties(device).total_memory

    def work(count: int) -> None:
        torch.empty(count * total // 100, dtype=torch.uint8, device=device)

    try:
        before = torch.cuda.memory_reserved(device)
        assert find_largest_fitting(doubling_sizes(64), MemoryProbe(work, device).fits) == 8
        assert torch.cuda.memory_reserved(device) == before
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
