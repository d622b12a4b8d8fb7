"""How much fits: the search with an injected `fits`, trials on a CPU, what is remembered, and what running out says."""

from __future__ import annotations

import json
import mmap
import subprocess
import sys
from dataclasses import replace
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
from choral.inference.trained_models import find_trained_models
from choral.runs import memory
from choral.runs.memory import Trial, doubling, explained, largest
from choral.runs.run_dir import RunDir
from choral.training.loop import train
from choral.training.micro_batch import accumulations, resolve_micro_batch
from choral.training.trainer import Trainer
from toys import new_folder

CPU = torch.device("cpu")
AUTO = ["train.accumulate_steps=auto"]
EXHAUSTED = (
    "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate"
)


def test_sizes_double_up_to_the_most_and_the_search_ends_at_the_first_that_does_not_fit() -> None:
    assert [doubling(most) for most in (1, 2, 3, 8, 10)] == [[1], [1, 2], [1, 2, 3], [1, 2, 4, 8], [1, 2, 4, 8, 10]]
    asked: list[int] = []

    def fits(size: int) -> bool:
        asked.append(size)
        return size <= 5

    assert largest(doubling(64), fits) == 4 and asked == [1, 2, 4, 8]
    assert largest(doubling(5), fits) == 5
    assert largest([6, 7], fits) == 0


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
    assert accumulations(Config(data=DataConfig(shards="s", lanes=lanes), train=train), ranks) == steps


def test_a_trial_on_a_cpu_measures_and_never_tries_what_would_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda: 600e6)  # of which 0.7 may be taken
    tried: list[int] = []

    def work(count: int) -> None:
        tried.append(count)
        with mmap.mmap(-1, count * 10_000_000) as pages:  # which the system has back at once, unlike what malloc keeps
            np.frombuffer(pages, np.int8)[:] = 1

    assert largest(doubling(64), Trial(work, CPU).fits) == 32  # 320 MB; 640 are not tried
    assert tried == [1, 2, 4, 8, 16, 32]
    tried.clear()
    assert largest(doubling(64), Trial(work, CPU, share=0.25).fits) == 8 and max(tried) == 8


def test_a_trial_that_runs_out_does_not_fit_and_other_errors_are_errors() -> None:
    def exhausted(count: int) -> None:
        raise RuntimeError(EXHAUSTED)

    def broken(count: int) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    assert not Trial(exhausted, CPU).fits(1)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        Trial(broken, CPU).fits(1)
    with (
        pytest.raises(OutOfMemory, match=r"out of memory with 8 images at a time \(some.key\): lower it \(.*you tried"),
        explained(8, "some.key", "lower it"),
    ):
        exhausted(8)
    with pytest.raises(OutOfMemory, match="CUDA out of memory"), explained(8, "some.key", "lower it"):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    with pytest.raises(RuntimeError, match="shapes cannot"), explained(8, "some.key", "lower it"):
        broken(8)


LIMITED = """
import resource, torch
from torch import nn
from choral.runs.memory import Trial, available_bytes, doubling, explained, largest, _field
network = nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.Flatten(), nn.LazyLinear(1))
def work(count):
    network(torch.randn(count, 3, 64, 64)).sum().backward()
work(1)  # whatever is allocated once
resource.setrlimit(resource.RLIMIT_AS, (int(_field("/proc/self/status", "VmSize")) + (400 << 20),) * 2)
found = largest(doubling(1 << 20), Trial(work, torch.device("cpu")).fits)
print(found, flush=True)
for _ in range(3):
    work(found)
with explained(16 * found, "train.batch_size: 64", "set train.accumulate_steps: auto"):
    work(16 * found)
"""


def test_under_a_real_limit_what_is_found_works_and_far_more_is_a_clear_error() -> None:
    result = subprocess.run([sys.executable, "-c", LIMITED], capture_output=True, text=True, timeout=120)
    found = int(result.stdout.split()[0])
    assert 8 <= found <= 256 and found & (found - 1) == 0
    last = result.stderr.strip().splitlines()[-1]
    assert (
        f"OutOfMemory: out of memory with {16 * found} images at a time (train.batch_size: 64): set train.acc" in last
    )


def test_micro_batches_are_found_once_and_kept(
    config_file: Path, tmp_path: Path, run: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, config, asked = new_folder(tmp_path / "run"), load_config(config_file, AUTO), list[int]()

    def fits(trial: Trial, size: int) -> bool:
        asked.append(size)
        return size <= 4

    monkeypatch.setattr(Trial, "fits", fits)
    resolved = resolve_micro_batch(config, folder, run)
    assert resolved == replace(config, train=replace(config.train, accumulate_steps=3))  # 4 of 12
    assert asked == [2, 3, 4, 6] and run.accelerator.gradient_accumulation_steps == 3
    assert json.loads((folder.path / "batch.json").read_text())["train.accumulate_steps"]["found"] == 3
    monkeypatch.setattr(Trial, "fits", lambda *_: pytest.fail("it was found before"))
    assert resolve_micro_batch(config, folder, run) == resolved
    both = replace(config, evaluate=replace(config.evaluate, batch_size="auto"))
    assert resolve_micro_batch(both, folder, run).evaluate.batch_size == 4  # validation fits where a micro-batch does
    monkeypatch.setattr(Trial, "fits", lambda trial, size: False)
    with pytest.raises(
        OutOfMemory, match="auto: out of memory with 2 images a rank, the fewest .* lower data.image_size"
    ):
        resolve_micro_batch(load_config(config_file, [*AUTO, "train.batch_size=8"]), folder, run)
    plain = load_config(config_file, ["train.accumulate_steps=2"])
    assert resolve_micro_batch(plain, folder, run) == plain and run.accelerator.gradient_accumulation_steps == 2


def test_training_with_auto_is_training_with_what_was_found(
    config_file: Path, tmp_path: Path, run: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = []
    limited = Trial.fits
    monkeypatch.setattr(Trial, "fits", lambda trial, size: size <= 6 and limited(trial, size))  # with real steps
    for name, steps in (("auto", "auto"), ("two", "2")):
        run.accelerator.gradient_accumulation_steps = 1
        folder = new_folder(tmp_path / name)
        config = load_config(config_file, [f"train.accumulate_steps={steps}", "train.steps=3"])
        folder.claim(config)
        train(config, folder, run)
        (checkpoint,) = folder.checkpoints.glob("*3")
        weights.append((checkpoint / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]


def test_running_out_in_training_names_the_batch_and_the_way_out(
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


def test_a_global_batch_is_never_found_by_trying(config_file: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"train.batch_size: auto: is how many samples .* train.accumulate_steps: auto"
    ):
        load_config(config_file, ["train.batch_size=auto"])


def test_evaluations_take_what_fits_and_remember_it(
    config_file: Path, tmp_path: Path, run: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = new_folder(tmp_path / "run")
    config = load_config(config_file, ["train.steps=1", "evaluate.views=hflip", "evaluate.splits=val"])
    folder.claim(config)
    train(config, folder, run)
    auto = replace(config, evaluate=replace(config.evaluate, batch_size="auto"))
    evaluate(auto, folder, run)  # with real forward passes
    content = json.loads((folder.path / "batch.json").read_text())["evaluate.batch_size"]
    assert content["found"] == batch_size_module.MOST["cpu"] and content["settings"]["networks"] == ["test_resnet 32"]
    monkeypatch.setattr(Trial, "fits", lambda trial, size: size <= 5)
    models, _ = find_trained_models(folder, config)
    assert batch_size_module.with_batch_size(auto, folder, run, models).evaluate.batch_size == 64  # remembered
    (folder.path / "batch.json").unlink()
    assert batch_size_module.with_batch_size(auto, folder, run, models).evaluate.batch_size == 4
    assert batch_size_module.with_batch_size(config, folder, run, models) == config


@pytest.mark.gpu
def test_on_a_gpu_too_much_is_tried_and_leaves_nothing_behind() -> None:
    device = torch.device("cuda")
    torch.cuda.set_per_process_memory_fraction(0.1)
    total = torch.cuda.get_device_properties(device).total_memory

    def work(count: int) -> None:
        torch.empty(count * total // 100, dtype=torch.uint8, device=device)

    try:
        before = torch.cuda.memory_reserved(device)
        assert largest(doubling(64), Trial(work, device).fits) == 8
        assert torch.cuda.memory_reserved(device) == before
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
