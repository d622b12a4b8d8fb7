"""The device stage: uint8 host batches to normalized, augmented float batches on a device.

On a CPU, the calling thread finishes a batch (normalize_cpu.py) and releases its slot at once.

On a GPU, for each batch:
1. The slot is copied to pinned memory (1 ms for 64 images) and released, so that the ring never waits for the GPU.
2. A side stream copies pinned memory to the device while the training stream computes. torch's pinned allocator records
   the copy and does not reuse the memory before it is done, so the host may drop its reference at once.
3. The consumer's stream waits for the event after these copies; the host does not. Then it augments and normalizes: the
   float batch is allocated and written on the consumer's own stream, like any tensor that the consumer makes.
4. The uint8 tensors are allocated on the side stream but read on the consumer's stream. `record_stream` keeps the next
   copy from reusing their memory before those reads are done.

One batch is copied ahead if the host stage has it ready; otherwise it is copied when it is requested. An exception that
occurs ahead is raised when its batch is requested.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from choral.data.augment.mixing import Mixing, mix_batch
from choral.data.augment.parameters import Augment, add_positions
from choral.data.loading.host_loader import HostBatch
from choral.data.loading.input_spec import InputSpec, distinct_image_specs
from choral.data.loading.normalize_cpu import CpuNormalizer
from choral.data.loading.normalize_device import DeviceNormalizer


@dataclass(frozen=True)
class Batch:
    """A batch on the device; its memory is never reused while the consumer holds it."""

    images: Tensor
    """(B, 3, S, S) float32, normalized."""
    labels: Tensor
    """(B,) int64 class ids, or (B, T) float32 labels or regression targets, on the device; see `Targets.take`."""
    valid: Tensor
    """(B,) bool, on the device. False: the sample, or the one mixed into it, cannot be read."""
    rows: NDArray[np.int64]
    """(B,) rows of the index, on the host."""
    epoch: int
    step: int
    partners: Tensor | None = None
    """Labels of the images mixed in, like `labels`; None without mixing."""
    shares: Tensor | None = None
    """(B,) float32, 0 to 1, on the device: weight of the sample's own image and label; None without mixing."""
    partner_rows: NDArray[np.int64] | None = None
    """(B,) rows of the images mixed in, on the host; None without mixing."""
    other_images: tuple[Tensor, ...] = ()
    """The same samples preprocessed for the other input specs, (B, 3, S', S') float32 each."""


class HostBatches(Protocol):
    """A source of host batches: a `HostLoader`, or batches that are already in memory."""

    def __next__(self) -> HostBatch:
        """Return the next batch, waiting for it."""

    def ready(self) -> bool:
        """Return whether the next batch is complete, so that `next` does not wait."""

    def close(self) -> None:
        """Stop the workers, if any; may be called more than once."""


class StoredBatches:
    """Host batches that are already in memory.

    Args:
        batches: not in slots of a ring; see `HostBatch.copy_and_release`.
    """

    def __init__(self, batches: Sequence[HostBatch]) -> None:
        self._batches = iter(batches)

    def __next__(self) -> HostBatch:
        """Return the next batch."""
        return next(self._batches)

    def ready(self) -> bool:
        """Return True: no batch is waited for."""
        return True

    def close(self) -> None:
        """Do nothing: the caller owns the batches."""


@dataclass(frozen=True)
class _StagedBatch:
    """A batch that is being copied to the GPU."""

    host: HostBatch
    images: tuple[Tensor, ...]
    """One uint8 tensor for each image spec."""
    arrays: dict[str, Tensor]
    """Everything but the images."""
    copied: torch.cuda.Event


@dataclass(frozen=True)
class _OtherInput:
    """A further input spec, which is never augmented."""

    position: int
    """Of its images in `HostBatch.all_images`."""
    cpu: CpuNormalizer
    device: DeviceNormalizer


class DeviceLoader:
    """Iterates once over the batches of a host loader, on a device; closing it closes the host loader.

    Args:
        host: uint8 batches, prepared to `distinct_image_specs(input_specs)`.
        device: of the batches.
        input_specs: the first gives `Batch.images`, the others `Batch.other_images`.
        augment: random changes of `Batch.images`; None in evaluation.
        mixing: how to mix samples whose requests name partners; None: no mixing.
    """

    def __init__(
        self,
        host: HostBatches,
        device: torch.device,
        input_specs: Sequence[InputSpec],
        augment: Augment | None = None,
        mixing: Mixing | None = None,
    ) -> None:
        first, *others = input_specs
        image_specs = distinct_image_specs(input_specs)
        self._host, self._device, self._mixing = host, device, mixing
        self._augment = augment if augment is not None and augment.active else None
        self._cpu_normalizer = CpuNormalizer(first.mean, first.std, first.channels_last)
        self._device_normalizer = DeviceNormalizer(first.mean, first.std, device, self._augment, first.channels_last)
        self._others = tuple(
            _OtherInput(
                image_specs.index(spec.image_spec),
                CpuNormalizer(spec.mean, spec.std, spec.channels_last),
                DeviceNormalizer(spec.mean, spec.std, device, None, spec.channels_last),
            )
            for spec in others
        )
        self._side_stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._side_stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._ahead: _StagedBatch | Exception | None = None

    def __iter__(self) -> Self:
        """Return itself: a loader is read once."""
        return self

    def __next__(self) -> Batch:
        """Return the next batch, waiting for it on the host but never for the device."""
        if self._side_stream is None:
            return self._finish_on_cpu(next(self._host))
        staged, self._ahead = self._ahead, None
        if isinstance(staged, Exception):
            raise staged
        batch = self._finish(staged or self._stage(next(self._host), self._side_stream))
        try:
            if self._host.ready():
                self._ahead = self._stage(next(self._host), self._side_stream)
        except Exception as error:
            self._ahead = error
        return batch

    def close(self) -> None:
        """Close the host loader; batches that were returned stay valid."""
        self._ahead = None
        self._host.close()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the loader."""
        self.close()

    def _augment_parameters(self, host: HostBatch) -> dict[str, NDArray[Any]] | None:
        if self._augment is None:
            return None
        return self._augment.parameters(host.request.epoch, host.request.rows, host.images.shape[1])

    def _arrays(self, host: HostBatch) -> dict[str, NDArray[Any]]:
        """Return labels, validity and mixing parameters of a batch; with key "partners" if it is to be mixed."""
        request, batch_size = host.request, host.request.batch_size
        arrays: dict[str, NDArray[Any]] = {"labels": host.labels[:batch_size], "valid": host.valid[:batch_size]}
        if self._mixing is not None and request.partners is not None:
            mixed = self._mixing.parameters(request.epoch, request.rows[:batch_size], host.images.shape[1])
            arrays |= {**mixed, "partners": request.partners, "partner_labels": host.labels[request.partners]}
            arrays["valid"] = arrays["valid"] & (host.valid[request.partners] | (mixed["share"] == 1))
        return arrays

    def _finish_on_cpu(self, host: HostBatch) -> Batch:
        images = self._cpu_normalizer(host.images, self._augment_parameters(host))
        arrays = self._arrays(host)
        if "partners" in arrays:
            images = self._cpu_normalizer.mix(images, arrays)
        others = tuple(other.cpu(host.all_images[other.position], None).to(self._device) for other in self._others)
        host.release()
        # On a CPU, `to` returns the same tensors.
        tensors = {name: torch.from_numpy(array).to(self._device) for name, array in arrays.items()}
        return _build_batch(host, images.to(self._device), tensors, others)

    def _stage(self, host: HostBatch, side_stream: torch.cuda.Stream) -> _StagedBatch:
        pinned = [torch.empty(images.shape, dtype=torch.uint8, pin_memory=True) for images in host.all_images]
        for memory, images in zip(pinned, host.all_images, strict=True):
            np.copyto(memory.numpy(), images)
        host.release()
        arrays = {**self._arrays(host), **add_positions(self._augment_parameters(host) or {})}
        with torch.cuda.stream(side_stream):
            all_images = tuple(memory.to(self._device, non_blocking=True) for memory in pinned)
            tensors = {
                name: torch.from_numpy(array).pin_memory().to(self._device, non_blocking=True)
                for name, array in arrays.items()
            }
            copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            copied.record(side_stream)
        return _StagedBatch(host, all_images, tensors, copied)

    def _finish(self, staged: _StagedBatch) -> Batch:
        current = torch.cuda.current_stream(self._device)
        current.wait_event(staged.copied)
        for tensor in (*staged.images, *staged.arrays.values()):
            tensor.record_stream(current)
        images = self._device_normalizer(staged.images[0], staged.arrays)
        if "partners" in staged.arrays:
            images = mix_batch(images, staged.arrays["partners"], staged.arrays)
        others = tuple(other.device(staged.images[other.position], {}) for other in self._others)
        return _build_batch(staged.host, images, staged.arrays, others)


def _build_batch(
    host: HostBatch, images: Tensor, tensors: Mapping[str, Tensor], other_images: tuple[Tensor, ...]
) -> Batch:
    request = host.request
    labels, valid, rows = tensors["labels"], tensors["valid"], host.rows[: request.batch_size]
    partners, shares = tensors.get("partner_labels"), tensors.get("share")
    partner_rows = host.rows[request.partners] if partners is not None else None
    return Batch(images, labels, valid, rows, request.epoch, request.step, partners, shares, partner_rows, other_images)
