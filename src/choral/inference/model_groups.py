"""Models that do not fit into memory together are loaded in groups, one after the other; images are still decoded once.

With a single group, all models are loaded once and every batch goes through them. With several, the decoded batches of a
window of chunks stay in host memory, and each group in turn is loaded and run on the whole window. Windows grow while they
take little time, because a stop loses the window in progress. Predictions do not depend on the grouping.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import nn

from choral.core.errors import ChoralError
from choral.core.process_group import Runtime
from choral.data.loading.device_loader import Batch, DeviceLoader, StoredBatches
from choral.data.loading.host_loader import HostBatch, HostLoader
from choral.data.loading.input_spec import InputSpec, distinct_image_specs
from choral.inference.predict_chunk import ChunkPredictions, InferenceOptions, predict_chunk
from choral.inference.prediction_tasks import PredictionTask
from choral.runs.memory import available_bytes, explain_out_of_memory, host_memory_share, is_out_of_memory

_log = logging.getLogger(__name__)
_WINDOW_BYTES = 256 << 20  # of decoded images
_WINDOW_S = 30.0  # a window that takes less is followed by one twice as long
_CPU_SHARE = 0.5  # of the free memory, for weights; the rest is for activations and images

Networks = list[tuple[PredictionTask, nn.Module]]


def sort_by_input_spec(tasks: Sequence[PredictionTask]) -> list[PredictionTask]:
    """Return the tasks sorted so that those with equal input specs are adjacent."""
    return sorted(tasks, key=lambda task: repr(task.model.input_spec))


def distinct_input_specs(tasks: Sequence[PredictionTask]) -> list[InputSpec]:
    """Return the different input specs of tasks that `sort_by_input_spec` has sorted."""
    return [input_spec for input_spec, _ in groupby(task.model.input_spec for task in tasks)]


@dataclass(frozen=True)
class ModelGroups:
    """Which models are in memory together.

    Attributes:
        groups: of tasks, sorted by input spec; none is empty.
        loaded: the networks of the only group; [] with several groups.
    """

    groups: list[list[PredictionTask]]
    loaded: Networks


def group_models(
    tasks: Sequence[PredictionTask], at_once: int | str, batch: int, runtime: Runtime, options: InferenceOptions
) -> ModelGroups:
    """Group models by what fits into memory together.

    Args:
        tasks: all of them.
        at_once: `evaluate.members_at_once`.
        batch: batch size.
        runtime: this rank; ranks may group differently.
        options: how the forward passes are made.

    Raises:
        ChoralError: a network does not fit even alone, or a checkpoint is damaged.
    """
    ordered = sort_by_input_spec(tasks)
    if isinstance(at_once, int):
        groups = [ordered[start : start + at_once] for start in range(0, len(ordered), at_once)]
    elif runtime.device.type == "cuda":
        groups, networks = group_by_memory(
            ordered, lambda task, others: _load_if_fits(task, others, batch, runtime, options)
        )
        if len(groups) == 1:
            return ModelGroups(groups, networks)
    else:
        groups = group_by_size(ordered, _CPU_SHARE * host_memory_share(runtime) * available_bytes())
    if len(groups) > 1:
        sizes = ", ".join(str(len(group)) for group in groups)
        _log.info("%d models do not fit into memory together; they are loaded in groups of %s", len(ordered), sizes)
        return ModelGroups(groups, [])
    return ModelGroups(groups, load_networks(ordered, runtime.device))


def group_by_size(tasks: Sequence[PredictionTask], max_bytes: float) -> list[list[PredictionTask]]:
    """Return groups of consecutive tasks whose weights together take at most `max_bytes`, or of a single one."""
    groups: list[list[PredictionTask]] = []
    used = 0
    for task in tasks:
        size = (task.model.checkpoint / task.model.weights_file).stat().st_size
        if not groups or used + size > max_bytes:
            groups.append([])
            used = 0
        groups[-1].append(task)
        used += size
    return groups


def group_by_memory(
    tasks: Sequence[PredictionTask], load: Callable[[PredictionTask, Networks], nn.Module | None]
) -> tuple[list[list[PredictionTask]], Networks]:
    """Group tasks by loading one network after the other until the memory is full.

    Args:
        tasks: sorted by input spec.
        load: loads the network of a task and runs it, beside those already loaded; None: it does not fit.

    Returns:
        The groups, and the networks of the last group, still loaded.

    Raises:
        ChoralError: a network does not fit even alone.
    """
    groups: list[list[PredictionTask]] = [[]]
    networks: Networks = []
    for task in tasks:
        network = load(task, networks)
        if network is None and networks:
            groups.append([])
            networks.clear()
            network = load(task, networks)
        if network is None:
            raise ChoralError(
                f"{task.model.name} does not fit into the memory of the device, even alone; lower evaluate.batch_size"
            )
        groups[-1].append(task)
        networks.append((task, network))
    return groups, networks


def _load_if_fits(
    task: PredictionTask, others: Networks, batch: int, runtime: Runtime, options: InferenceOptions
) -> nn.Module | None:
    """Load a network on a GPU and run it on a batch of zeros; None: out of memory.

    A batch for each input spec of the networks loaded so far is in memory meanwhile.
    """
    torch.cuda.empty_cache()  # left by the last group
    input_specs = distinct_input_specs([*(other for other, _ in others), task])
    try:
        network = task.model.load(runtime.device)
        images = [
            torch.zeros(batch, 3, input_spec.image_spec.size, input_spec.image_spec.size, device=runtime.device)
            for input_spec in input_specs
        ]
        with torch.inference_mode(), options.autocast():
            network(images[-1].flip(-1))  # a view is a copy
        torch.cuda.synchronize(runtime.device)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return None
    return network


def load_networks(tasks: Sequence[PredictionTask], device: torch.device) -> Networks:
    """Return the tasks with their networks, loaded."""
    return [(task, task.model.load(device)) for task in tasks]


def predict_by_groups(
    host: HostLoader,
    groups: ModelGroups,
    new_predictions: Callable[[Batch | HostBatch], ChunkPredictions],
    runtime: Runtime,
    options: InferenceOptions,
) -> Iterator[tuple[int, ChunkPredictions]]:
    """Yield the number of each chunk (`BatchRequest.step`) and its predictions by all models.

    Args:
        host: the samples, prepared for the input specs of all tasks; closed at the end.
        groups: of the models.
        new_predictions: creates the empty predictions of a chunk.
        runtime: this rank.
        options: how the forward passes are made.

    Raises:
        Stopped: this rank was asked to stop; chunks yielded before are complete.
    """
    if len(groups.groups) == 1:
        input_specs = distinct_input_specs(groups.groups[0])
        with DeviceLoader(host, runtime.device, input_specs) as loader:
            for batch in loader:
                predictions = new_predictions(batch)
                _predict_batch(groups.loaded, input_specs, batch, options, predictions)
                yield batch.step, predictions
                check_stop(runtime)
        return
    specs_of_host = distinct_image_specs([spec for group in groups.groups for spec in distinct_input_specs(group)])
    with host:
        for window in _iterate_windows(host):
            window_predictions = {batch.request.step: new_predictions(batch) for batch in window}
            for group in groups.groups:
                input_specs = distinct_input_specs(group)
                positions = [specs_of_host.index(spec) for spec in distinct_image_specs(input_specs)]
                batches = StoredBatches([batch.select_images(positions) for batch in window])
                networks = load_networks(group, runtime.device)
                with DeviceLoader(batches, runtime.device, input_specs) as loader:
                    for batch in loader:
                        check_stop(runtime)
                        _predict_batch(networks, input_specs, batch, options, window_predictions[batch.step])
                del networks
            yield from window_predictions.items()
            check_stop(runtime)


def check_stop(runtime: Runtime) -> None:
    """Raise `Stopped` on this rank if it was asked to stop.

    Ranks have different numbers of chunks and cannot agree; the launcher ends the others.
    """
    if runtime.stop_requested:
        raise runtime.stop_error("during evaluation")


def _iterate_windows(host: HostLoader) -> Iterator[list[HostBatch]]:
    """Yield lists of batches to keep in memory together, each twice as long as the last one if that took little time."""
    length, window, size = 1, list[HostBatch](), 0
    started = time.monotonic()
    for batch in host:
        window.append(batch.copy_and_release())
        size += sum(images.nbytes for images in window[-1].all_images)
        if len(window) < length and size < _WINDOW_BYTES:
            continue
        yield window
        now = time.monotonic()
        if now - started < _WINDOW_S and size < _WINDOW_BYTES:
            length *= 2
        window, size, started = [], 0, now
    if window:
        yield window


def _predict_batch(
    networks: Networks,
    input_specs: Sequence[InputSpec],
    batch: Batch,
    options: InferenceOptions,
    predictions: ChunkPredictions,
) -> None:
    """Run all networks on a batch, those of each input spec on its images."""
    for input_spec, images in zip(input_specs, (batch.images, *batch.other_images), strict=True):
        matching = [(task, network) for task, network in networks if task.model.input_spec == input_spec]
        with explain_out_of_memory(len(batch.rows), "evaluate.batch_size", "lower it, or set it to auto"):
            predict_chunk(matching, images, options, predictions)
