"""evaluate.batch_size: auto. The largest batch that a forward pass of every network of an evaluation has room for."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import torch

from choral.config import Config
from choral.core.errors import OutOfMemory
from choral.core.process_group import Runtime
from choral.inference.trained_models import TrainedModel
from choral.runs.memory import (
    Trial,
    agreed,
    device_name,
    doubling,
    host_share,
    largest,
    remember,
    remembered,
)
from choral.runs.run_dir import RunDir

MOST = {"cpu": 64, "cuda": 512}
"""Images at a time; more would not be faster, or hardly."""
_NAME = "evaluate.batch_size"
_log = logging.getLogger(__name__)


def with_batch_size(config: Config, folder: RunDir, run: Runtime, models: Sequence[TrainedModel]) -> Config:
    """Return the config with `batch_size: auto` replaced, the same on all ranks and at every start.

    What was found for the same networks, precision and kind of device stands in batch.json of the run folder.

    Raises:
        OutOfMemory: a network has no room for a single image.
    """
    if config.evaluate.batch_size == "auto":
        input_specs = {f"{model.config.model.name} {model.config.data.image_size}": model for model in models}
        settings = {"networks": sorted(input_specs), "precision": config.train.precision, "device": device_name(run)}
        size = remembered(folder, run, _NAME, settings)
        if not size:
            size = min(_found(model, run) for model in input_specs.values())
            remember(folder, run, _NAME, settings, size)
            _log.info("evaluate.batch_size: auto: %d images at a time (%s)", size, device_name(run))
        return replace(config, evaluate=replace(config.evaluate, batch_size=size))
    return config


def _found(model: TrainedModel, run: Runtime) -> int:
    network, side = model.load(run.device), model.config.data.image_size

    @torch.inference_mode()
    def work(count: int) -> None:
        images = torch.randn(count, 3, side, side, device=run.device)
        with run.accelerator.autocast():
            network(images.flip(-1))  # beside the images there is a view of them

    trial = Trial(work, run.device, host_share(run))
    size = largest(doubling(MOST.get(run.device.type, 64)), agreed(run, trial.fits))
    if not size:
        raise OutOfMemory(
            f"evaluate.batch_size: auto: out of memory with a single image of {side} x {side} for {model.name}: end what "
            "else is on the device, or use another one"
        )
    return size
