"""The device stage: uint8 host batches to normalised, augmented float batches on a device.

On a CPU a batch is finished in the calling thread (normalize.py) and its slot given back at once.

On a GPU, per batch:
1. The slot is copied into pinned memory (1 ms for 64 images) and given back: nothing of the ring is waited for later.
2. A side stream copies pinned memory to the device, beside whatever the training stream computes. torch's pinned
   allocator notes the copy and does not hand the memory out again before it is done: the host may forget it at once.
3. The consumer's stream waits for the event behind these copies; the host does not. Then it turns, changes and
   normalises: the float batch is allocated and written on the consumer's own stream, like any tensor it makes itself.
4. The uint8 tensors were allocated on the side stream but are read on the consumer's: `record_stream` keeps their
   memory from being reused, by the next copy, before those reads are done.

One batch is copied ahead, if the host stage has it ready; otherwise it is copied when it is asked for. What goes wrong
ahead is raised when its batch is asked for.
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

from choral.data.augment.mixing import Mixing, mix
from choral.data.augment.parameters import Augment, with_selections
from choral.data.loading.host_loader import HostBatch
from choral.data.loading.input_spec import InputSpec, image_specs_of
from choral.data.loading.normalize_batch import Standardizer
from choral.data.loading.normalize_cpu import Normalizer


@dataclass(frozen=True)
class Batch:
    """A batch on the device, the consumer's for as long as it likes."""

    images: Tensor
    """(B, 3, S, S) float32, normalised."""
    labels: Tensor
    """(B,) int64 class ids, or (B, T) float32 labels or numbers, on the device; see `Targets.of`."""
    valid: Tensor
    """(B,) bool, on the device; False: the sample, or what is mixed into it, could not be read: its image means nothing."""
    rows: NDArray[np.int64]
    """(B,) rows of the index, on the host."""
    epoch: int
    step: int
    partners: Tensor | None = None
    """Labels of the images mixed in, as `labels`; None where nothing is mixed."""
    shares: Tensor | None = None
    """(B,) float32, 0 to 1, on the device: share of the sample's own image; None where nothing is mixed."""
    partner_rows: NDArray[np.int64] | None = None
    """(B,) rows of the images mixed in, on the host; None where nothing is mixed."""
    others: tuple[Tensor, ...] = ()
    """The same samples as further looks show them, (B, 3, S', S') float32 each."""


class HostBatches(Protocol):
    """Where batches come from: a `HostLoader`, or batches that one has made before."""

    def __next__(self) -> HostBatch:
        """Return the next batch, waiting for it."""

    def ready(self) -> bool:
        """Return whether the next batch is complete, so that asking for it does not wait."""

    def close(self) -> None:
        """End whatever makes them; may be called more than once."""


class Again:
    """Batches that were made before, shown once more.

    Args:
        batches: in memory of their own (`HostBatch.kept`).
    """

    def __init__(self, batches: Sequence[HostBatch]) -> None:
        self._batches = iter(batches)

    def __next__(self) -> HostBatch:
        """Return the next one."""
        return next(self._batches)

    def ready(self) -> bool:
        """Return True: nothing is waited for."""
        return True

    def close(self) -> None:
        """Do nothing: the batches are somebody else's."""


@dataclass(frozen=True)
class _Staged:
    """A batch whose copies to the GPU are under way."""

    host: HostBatch
    forms: tuple[Tensor, ...]
    small: dict[str, Tensor]
    copied: torch.cuda.Event


class DeviceLoader:
    """Iterates over the batches of a host loader, once, on a device; closes the host loader with itself.

    Args:
        host: uint8 batches.
        device: where to.
        mean, std: of the three channels, for values from 0 to 1.
        augment: random changes; None in evaluation.
        channels_last: memory format of the images.
        mixing: how samples whose orders name partners are mixed.
        also: further looks at the same samples, never augmented, with the position of each one's form in
            `HostBatch.forms`.
    """

    def __init__(
        self,
        host: HostBatches,
        device: torch.device,
        mean: Sequence[float],
        std: Sequence[float],
        augment: Augment | None,
        channels_last: bool,
        mixing: Mixing | None = None,
        also: Sequence[tuple[int, InputSpec]] = (),
    ) -> None:
        self._host, self._device, self._mixing = host, device, mixing
        self._augment = augment if augment is not None and augment.active else None
        self._normalize = Normalizer(mean, std, channels_last)
        self._standardize = Standardizer(mean, std, device, self._augment, channels_last)
        self._also = tuple(
            (
                form,
                Normalizer(input_spec.mean, input_spec.std, input_spec.channels_last),
                Standardizer(input_spec.mean, input_spec.std, device, None, input_spec.channels_last),
            )
            for form, input_spec in also
        )
        self._side: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._ahead: _Staged | Exception | None = None

    def __iter__(self) -> Self:
        """Return itself: a loader is read once."""
        return self

    def __next__(self) -> Batch:
        """Return the next batch, waiting for it on the host but never for the device."""
        if self._side is None:
            return self._on_host(next(self._host))
        staged, self._ahead = self._ahead, None
        if isinstance(staged, Exception):
            raise staged
        batch = self._finish(staged or self._stage(next(self._host), self._side))
        try:
            if self._host.ready():
                self._ahead = self._stage(next(self._host), self._side)
        except Exception as error:
            self._ahead = error
        return batch

    def close(self) -> None:
        """Close the host loader; batches that were handed out stay."""
        self._ahead = None
        self._host.close()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()

    def _parameters(self, host: HostBatch) -> dict[str, NDArray[Any]] | None:
        if self._augment is None:
            return None
        return self._augment.parameters(host.order.epoch, host.order.rows, host.images.shape[1])

    def _small(self, host: HostBatch) -> dict[str, NDArray[Any]]:
        """Return what a batch has beside its images; with "partners" where these are to be mixed."""
        order, own = host.order, host.order.own
        small: dict[str, NDArray[Any]] = {"labels": host.labels[:own], "valid": host.valid[:own]}
        if self._mixing is not None and order.partners is not None:
            mixed = self._mixing.parameters(order.epoch, order.rows[:own], host.images.shape[1])
            small |= {**mixed, "partners": order.partners, "partner_labels": host.labels[order.partners]}
            small["valid"] = small["valid"] & (host.valid[order.partners] | (mixed["share"] == 1))
        return small

    def _on_host(self, host: HostBatch) -> Batch:
        images = self._normalize(host.images, self._parameters(host))
        small = self._small(host)
        if "partners" in small:
            images = self._normalize.mix(images, small)
        others = tuple(normalize(host.forms[form], None).to(self._device) for form, normalize, _ in self._also)
        host.release()
        # On a CPU, these are the same tensors.
        moved = {name: torch.from_numpy(array).to(self._device) for name, array in small.items()}
        return _batch(host, images.to(self._device), moved, others)

    def _stage(self, host: HostBatch, side: torch.cuda.Stream) -> _Staged:
        pinned = [torch.empty(images.shape, dtype=torch.uint8, pin_memory=True) for images in host.forms]
        for memory, images in zip(pinned, host.forms, strict=True):
            np.copyto(memory.numpy(), images)
        host.release()
        small = {**self._small(host), **with_selections(self._parameters(host) or {})}
        with torch.cuda.stream(side):
            forms = tuple(memory.to(self._device, non_blocking=True) for memory in pinned)
            moved = {
                name: torch.from_numpy(array).pin_memory().to(self._device, non_blocking=True)
                for name, array in small.items()
            }
            copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            copied.record(side)
        return _Staged(host, forms, moved, copied)

    def _finish(self, staged: _Staged) -> Batch:
        current = torch.cuda.current_stream(self._device)
        current.wait_event(staged.copied)
        for tensor in (*staged.forms, *staged.small.values()):
            tensor.record_stream(current)
        images = self._standardize(staged.forms[0], staged.small)
        if "partners" in staged.small:
            images = mix(images, staged.small["partners"], staged.small)
        others = tuple(standardize(staged.forms[form], {}) for form, _, standardize in self._also)
        return _batch(staged.host, images, staged.small, others)


def preprocess(host: HostBatches, device: torch.device, input_specs: Sequence[InputSpec]) -> DeviceLoader:
    """Return batches whose `images` and `others` are what the looks show; the forms of `host` are `image_specs_of(looks)`."""
    forms = image_specs_of(input_specs)
    first, *others = input_specs
    also = [(forms.index(input_spec.form), input_spec) for input_spec in others]
    return DeviceLoader(host, device, first.mean, first.std, None, first.channels_last, also=also)


def _batch(host: HostBatch, images: Tensor, small: Mapping[str, Tensor], others: tuple[Tensor, ...]) -> Batch:
    order = host.order
    labels, valid, rows = small["labels"], small["valid"], host.rows[: order.own]
    partners, shares = small.get("partner_labels"), small.get("share")
    partner_rows = host.rows[order.partners] if partners is not None else None
    return Batch(images, labels, valid, rows, order.epoch, order.step, partners, shares, partner_rows, others)
