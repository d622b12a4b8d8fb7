"""Networks that do not fit into memory together take turns; an image is decoded once all the same.

With one turn, all networks are loaded once and batches pass by them. With several, the batches of a window of chunks are
kept on the host as bytes, and for each turn its networks are loaded and asked about all of the window. Windows grow as long
as they take little time: what is unfinished when the process is stopped is a window. None of it changes a prediction.
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
from choral.data.loading.device_loader import Again, Batch, preprocess
from choral.data.loading.host_loader import HostBatch, HostLoader
from choral.data.loading.input_spec import InputSpec, image_specs_of
from choral.inference.predict_chunk import ChunkPredictions, InferenceOptions, predict_chunk
from choral.inference.prediction_tasks import PredictionTask
from choral.runs.memory import available_bytes, explained, host_share, is_out_of_memory

_log = logging.getLogger(__name__)
_WINDOW_BYTES = 256 << 20  # of decoded images
_WINDOW_S = 30.0  # that a window may take for the next one to be twice as long
_CPU_SHARE = 0.5  # of the memory that is free, for weights: activations and images want some, too

Networks = list[tuple[PredictionTask, nn.Module]]


def input_specs_of(tasks: Sequence[PredictionTask]) -> list[InputSpec]:
    """Return the different looks of questions that stand in the order of their looks (`by_input_spec`)."""
    return [input_spec for input_spec, _ in groupby(task.model.input_spec for task in tasks)]


def by_input_spec(tasks: Sequence[PredictionTask]) -> list[PredictionTask]:
    """Return questions in an order in which those of equal looks stand together."""
    return sorted(tasks, key=lambda task: repr(task.model.input_spec))


@dataclass(frozen=True)
class ModelGroups:
    """Who is asked together.

    Attributes:
        groups: of questions, in the order of their looks; none is empty.
        loaded: the networks of the only group, once they are loaded; with several groups none.
    """

    groups: list[list[PredictionTask]]
    loaded: Networks


def group_models(
    tasks: Sequence[PredictionTask], at_once: int | str, batch: int, run: Runtime, options: InferenceOptions
) -> ModelGroups:
    """Decide who is asked together.

    Args:
        questions: all of them.
        at_once: `evaluate.members_at_once`.
        batch: images at a time.
        run: this rank; ranks may decide differently.
        manner: how networks are asked.

    Raises:
        ChoralError: a network does not fit even alone, or a checkpoint is damaged.
    """
    ordered = by_input_spec(tasks)
    if isinstance(at_once, int):
        groups = [ordered[start : start + at_once] for start in range(0, len(ordered), at_once)]
    elif run.device.type == "cuda":
        groups, networks = group_by_memory(ordered, lambda task, others: _tried(task, others, batch, run, options))
        if len(groups) == 1:
            return ModelGroups(groups, networks)
    else:
        groups = group_by_size(ordered, _CPU_SHARE * host_share(run) * available_bytes())
    if len(groups) > 1:
        sizes = ", ".join(str(len(group)) for group in groups)
        _log.info("%d networks take turns, as many at once as have room: %s", len(ordered), sizes)
        return ModelGroups(groups, [])
    return ModelGroups(groups, load(ordered, run.device))


def group_by_size(tasks: Sequence[PredictionTask], room: float) -> list[list[PredictionTask]]:
    """Return groups, each of the next questions whose weights have room together, in bytes, or of a single one."""
    groups: list[list[PredictionTask]] = []
    taken = 0
    for task in tasks:
        size = (task.model.checkpoint / task.model.weights).stat().st_size
        if not groups or taken + size > room:
            groups.append([])
            taken = 0
        groups[-1].append(task)
        taken += size
    return groups


def group_by_memory(
    tasks: Sequence[PredictionTask], attempt: Callable[[PredictionTask, Networks], nn.Module | None]
) -> tuple[list[list[PredictionTask]], Networks]:
    """Return groups, and the networks of the last one, still loaded.

    Args:
        questions: in the order of their looks.
        attempt: loads the network of a question and asks it, beside those that are loaded; None: there was no room.

    Raises:
        ChoralError: a network has no room even alone.
    """
    groups: list[list[PredictionTask]] = [[]]
    networks: Networks = []
    for task in tasks:
        network = attempt(task, networks)
        if network is None and networks:
            groups.append([])
            networks.clear()
            network = attempt(task, networks)
        if network is None:
            raise ChoralError(
                f"{task.model.name} does not fit into the memory of the device, even alone; lower evaluate.batch_size"
            )
        groups[-1].append(task)
        networks.append((task, network))
    return groups, networks


def _tried(
    task: PredictionTask, others: Networks, batch: int, run: Runtime, options: InferenceOptions
) -> nn.Module | None:
    """Return the network on a GPU after one batch of zeros for each look that is loaded by then; None: out of memory."""
    torch.cuda.empty_cache()  # what a group before has left
    input_specs = input_specs_of([*(other for other, _ in others), task])
    try:
        network = task.model.load(run.device)
        images = [
            torch.zeros(batch, 3, input_spec.form.size, input_spec.form.size, device=run.device)
            for input_spec in input_specs
        ]
        with torch.inference_mode(), options.autocast():
            network(images[-1].flip(-1))  # a view is a copy
        torch.cuda.synchronize(run.device)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return None
    return network


def load(tasks: Sequence[PredictionTask], device: torch.device) -> Networks:
    """Return questions with their networks, each loaded once."""
    return [(task, task.model.load(device)) for task in tasks]


def predict_by_groups(
    host: HostLoader,
    turns: ModelGroups,
    started: Callable[[Batch | HostBatch], ChunkPredictions],
    run: Runtime,
    options: InferenceOptions,
) -> Iterator[tuple[int, ChunkPredictions]]:
    """Yield chunks, as `Order.step` numbers them, with what everybody says about them.

    Args:
        host: the samples, in the forms of the looks of all questions; closed at the end.
        turns: who is asked together.
        started: makes the answers of a chunk, to be filled.
        run: this rank.
        manner: how networks are asked.

    Raises:
        Stopped: this rank was told to stop; what was yielded before is finished.
    """
    if len(turns.groups) == 1:
        input_specs = input_specs_of(turns.groups[0])
        with preprocess(host, run.device, input_specs) as loader:
            for batch in loader:
                answers = started(batch)
                _ask_all(turns.loaded, input_specs, batch, options, answers)
                yield batch.step, answers
                check_stop(run)
        return
    forms = image_specs_of([input_spec for group in turns.groups for input_spec in input_specs_of(group)])
    with host:
        for window in _windows(host):
            found = {batch.order.step: started(batch) for batch in window}
            for group in turns.groups:
                input_specs = input_specs_of(group)
                own = [forms.index(form) for form in image_specs_of(input_specs)]
                networks = load(group, run.device)
                with preprocess(Again([batch.in_forms(own) for batch in window]), run.device, input_specs) as loader:
                    for batch in loader:
                        check_stop(run)
                        _ask_all(networks, input_specs, batch, options, found[batch.step])
                del networks
            yield from found.items()
            check_stop(run)


def check_stop(run: Runtime) -> None:
    """Raise `Stopped` if this rank is told to stop: it alone, for ranks have different numbers of chunks and cannot agree;
    the launcher ends the others."""
    if run.told_to_stop:
        raise run.stopped("during evaluation")


def _windows(host: HostLoader) -> Iterator[list[HostBatch]]:
    """Yield batches that are kept together, twice as many as before if that was done with soon."""
    length, window, held = 1, list[HostBatch](), 0
    started = time.monotonic()
    for batch in host:
        window.append(batch.kept())
        held += sum(images.nbytes for images in window[-1].forms)
        if len(window) < length and held < _WINDOW_BYTES:
            continue
        yield window
        now = time.monotonic()
        if now - started < _WINDOW_S and held < _WINDOW_BYTES:
            length *= 2
        window, held, started = [], 0, now
    if window:
        yield window


def _ask_all(
    networks: Networks,
    input_specs: Sequence[InputSpec],
    batch: Batch,
    options: InferenceOptions,
    answers: ChunkPredictions,
) -> None:
    for input_spec, images in zip(input_specs, (batch.images, *batch.others), strict=True):
        own = [(task, network) for task, network in networks if task.model.input_spec == input_spec]
        with explained(len(batch.rows), "evaluate.batch_size", "lower it, or set it to auto"):
            predict_chunk(own, images, options, answers)
