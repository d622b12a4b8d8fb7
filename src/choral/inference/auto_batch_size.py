"""evaluate.batch_size: auto. Finds the largest batch with which a forward pass of every model fits into memory."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch

from choral.core.errors import OutOfMemory
from choral.core.process_group import Runtime
from choral.inference.trained_model import TrainedModel
from choral.runs.memory import (
    MemoryProbe,
    device_name,
    doubling_sizes,
    find_largest_fitting,
    fits_on_all_ranks,
    host_memory_share,
    read_probe_result,
    write_probe_result,
)
from choral.runs.run_dir import RunDir

MAX_IMAGES = {"cpu": 64, "cuda": 512}
"""Largest batch size that is tried, by device type; larger batches are hardly faster."""
_NAME = "evaluate.batch_size"
_log = logging.getLogger(__name__)


def find_batch_size(models: Sequence[TrainedModel], precision: str, run_dir: RunDir, runtime: Runtime) -> int:
    """Return the largest batch size that fits for every model, the same on all ranks and at every start.

    RUN/batch.json stores the result for these models, precision and type of device, and is read first.

    Raises:
        OutOfMemory: a model does not fit with a single image.
    """
    by_architecture = {f"{model.config.model.name} {model.config.data.image_size}": model for model in models}
    settings = {"networks": sorted(by_architecture), "precision": precision, "device": device_name(runtime)}
    size = read_probe_result(run_dir, runtime, _NAME, settings)
    if not size:
        size = min(_probe_model(model, runtime) for model in by_architecture.values())
        write_probe_result(run_dir, runtime, _NAME, settings, size)
        _log.info("evaluate.batch_size: auto: %d images at a time (%s)", size, device_name(runtime))
    return size


def _probe_model(model: TrainedModel, runtime: Runtime) -> int:
    """Return the largest batch size with which a model fits on every rank."""
    network, side = model.load(runtime.device), model.config.data.image_size

    @torch.inference_mode()
    def work(count: int) -> None:
        images = torch.randn(count, 3, side, side, device=runtime.device)
        with runtime.accelerator.autocast():
            network(images.flip(-1))  # a view is a second copy of the images

    probe = MemoryProbe(work, runtime.device, host_memory_share(runtime))
    sizes = doubling_sizes(MAX_IMAGES.get(runtime.device.type, 64))
    size = find_largest_fitting(sizes, fits_on_all_ranks(runtime, probe.fits))
    if not size:
        raise OutOfMemory(
            f"evaluate.batch_size: auto: out of memory with a single image of {side} x {side} for {model.name}: end other "
            "processes on the device, or use another device"
        )
    return size
