"""The device stage: normalized and augmented float batches, whose memory is not reused while it is held."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from augment_configs import ALL_AUGMENTATIONS, build_augment
from choral.core.errors import DataError
from choral.data.augment.mixing import Mixing, add_partners
from choral.data.augment.parameters import Augment, add_positions
from choral.data.loading.bad_samples import BadSamples
from choral.data.loading.crop import Crop
from choral.data.loading.device_loader import Batch, DeviceLoader
from choral.data.loading.host_loader import BatchRequest, HostLoader
from choral.data.loading.input_spec import ImageSpec, InputSpec
from choral.data.loading.normalize_cpu import BufferPool, CpuNormalizer
from choral.data.loading.normalize_device import DeviceNormalizer
from choral.data.loading.sample_pipeline import SamplePipeline
from choral.data.loading.targets import Targets
from choral.data.shards.index import Index
from choral.data.shards.store import LocalStore
from image_bytes import photo

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIZE = 24
FLIPS = {"hflip": 0.5, "vflip": 0.5, "rot90": True}
COLOURS = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.5, "hue": 0.2, "grey": 0.2}
EXACT = [
    None,
    build_augment(hflip=0.5),
    build_augment(**FLIPS),
    build_augment(brightness=0.4),
    build_augment(**FLIPS, brightness=0.6, contrast=0.6),
    build_augment(**FLIPS, **COLOURS, blur=0.5, blur_sigma=(0.5, 20.0), noise=0.5, erasing=0.5),
]
RESAMPLED = [
    build_augment(rotate=30, translate=0.1, zoom=(0.5, 2), shear=20, perspective=0.2, geometry_prob=0.8),
    build_augment(policy="randaugment", policy_ops=3, policy_magnitude=15.0),
    build_augment(policy="trivialaugment"),
    build_augment(**ALL_AUGMENTATIONS),
]


def host(
    index: Index,
    requests: list[BatchRequest],
    policy: BadSamples | None = None,
    crop: Crop | None = None,
    targets: Targets | None = None,
) -> HostLoader:
    image_spec = ImageSpec(SIZE, crop or Crop("center"), "fast")
    samples = SamplePipeline(index, LocalStore(index.dataset), [image_spec])
    policy = policy or BadSamples("fail")
    return HostLoader(samples, requests, workers=1, worker_kind="thread", policy=policy, targets=targets)


def input_specs(channels_last: bool = True) -> list[InputSpec]:
    return [InputSpec(ImageSpec(SIZE, Crop("center"), "fast"), MEAN, STD, channels_last)]


def make_requests(count: int = 6, size: int = 4) -> list[BatchRequest]:
    return [BatchRequest((np.arange(size) + step) % 13, step // 2, step) for step in range(count)]


def uint8_images(index: Index, requests: list[BatchRequest]) -> list[NDArray[np.uint8]]:
    found = []
    with host(index, requests) as batches:
        for batch in batches:
            found.append(batch.images.copy())
            batch.release()
    return found


def normalized(images: NDArray[np.uint8]) -> torch.Tensor:
    values = torch.from_numpy(images).permute(0, 3, 1, 2).double() / 255
    mean, std = (torch.tensor(numbers, dtype=torch.float64).view(3, 1, 1) for numbers in (MEAN, STD))
    return ((values - mean) / std).float()


@pytest.mark.parametrize("channels_last", [False, True])
def test_evaluation_never_augments(index: Index, channels_last: bool) -> None:
    requests = make_requests()
    expected = uint8_images(index, requests)
    with DeviceLoader(host(index, requests), torch.device("cpu"), input_specs(channels_last)) as batches:
        for number, batch in enumerate(batches):
            torch.testing.assert_close(batch.images, normalized(expected[number]), rtol=0, atol=1e-6)
            memory_format = torch.channels_last if channels_last else torch.contiguous_format
            assert batch.images.is_contiguous(memory_format=memory_format)
            assert batch.images.dtype == torch.float32 and batch.images.shape == (4, 3, SIZE, SIZE)
            assert batch.rows.tolist() == requests[number].rows.tolist()
            assert batch.labels.tolist() == index.labels[batch.rows].tolist() and batch.labels.dtype == torch.int64
            assert batch.valid.all() and batch.valid.dtype == torch.bool
            assert (batch.epoch, batch.step) == (requests[number].epoch, requests[number].step)
    assert number == 5


def assert_agree(found: torch.Tensor, expected: torch.Tensor, resampled: bool) -> None:
    """Equal within float rounding; for resampled images, all but one value in a thousand within 1.5 levels."""
    difference = (found - expected).abs()
    if not resampled:
        assert difference.max() < 3e-5
        return
    level = 1 / 255 / min(STD)
    assert (difference > 1.5 * level).float().mean() < 1e-3
    assert difference.mean() < 0.02 * level


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("augment", EXACT + RESAMPLED)
def test_cpu_and_device_normalizers_agree(augment: Augment | None, channels_last: bool) -> None:
    images = np.stack([photo(SIZE, SIZE, seed=number) for number in range(40)])
    images[0] = 0
    parameters = augment.parameters(1, np.arange(40), SIZE) if augment else None
    on_cpu = CpuNormalizer(MEAN, STD, channels_last)(images, parameters)
    moved = {name: torch.from_numpy(values) for name, values in add_positions(parameters or {}).items()}
    anywhere = DeviceNormalizer(MEAN, STD, torch.device("cpu"), augment, channels_last)(torch.from_numpy(images), moved)
    assert_agree(on_cpu, anywhere, augment in RESAMPLED)
    assert on_cpu.stride() == anywhere.stride()
    if augment:
        assert not torch.equal(on_cpu, CpuNormalizer(MEAN, STD, channels_last)(images, None))
        assert (on_cpu.amax((0, 2, 3)) <= (1 - torch.tensor(MEAN)) / torch.tensor(STD) + 1e-5).all(), (
            "values are clipped"
        )


def test_flips_and_quarter_turns_are_exact(index: Index) -> None:
    requests = [BatchRequest(np.arange(13), epoch, epoch) for epoch in range(3)]
    plain = uint8_images(index, requests)
    augment = build_augment(seed=1, **FLIPS)
    with DeviceLoader(host(index, requests), torch.device("cpu"), input_specs(), augment) as batches:
        for batch, images in zip(batches, plain, strict=True):
            parameters = augment.parameters(batch.epoch, batch.rows, SIZE)
            for i, image in enumerate(images):
                image = image.transpose(1, 0, 2) if parameters["transpose"][i] else image
                image = image[:, ::-1] if parameters["hflip"][i] else image
                image = image[::-1] if parameters["vflip"][i] else image
                torch.testing.assert_close(batch.images[i], normalized(image[None].copy())[0], rtol=0, atol=1e-6)


def test_batches_may_be_kept(index: Index) -> None:
    requests = make_requests(8)
    expected = uint8_images(index, requests)
    with DeviceLoader(host(index, requests), torch.device("cpu"), input_specs()) as batches:
        kept = list(batches)
    for batch, images in zip(kept, expected, strict=True):
        torch.testing.assert_close(batch.images, normalized(images), rtol=0, atol=1e-6)


def test_a_batch_saved_for_backward_is_not_overwritten(index: Index) -> None:
    weight = torch.ones(1, requires_grad=True)
    losses = []
    requests = make_requests(5)
    with DeviceLoader(host(index, requests), torch.device("cpu"), input_specs()) as batches:
        for batch in batches:
            losses.append((batch.images * weight).sum())  # only autograd keeps the images
            del batch
    for loss, images in zip(losses, uint8_images(index, requests), strict=True):
        weight.grad = None
        loss.backward()
        assert weight.grad is not None
        torch.testing.assert_close(weight.grad, normalized(images).sum().view(1), rtol=1e-4, atol=1e-2)


def test_memory_is_reused_once_no_tensor_holds_it() -> None:
    buffers = BufferPool()
    addresses = set()
    previous = None
    for _ in range(10):
        array = buffers.take((4, 5))
        tensor = torch.from_numpy(array).view(20)
        addresses.add(tensor.data_ptr())
        assert tensor.data_ptr() % 64 == 0
        del array
        previous = tensor  # as in a loop: the previous batch lives until the next one arrives
    assert len(addresses) == 2
    assert previous is not None and torch.from_numpy(buffers.take((2, 5))).data_ptr() in addresses - {
        previous.data_ptr()
    }
    held = [torch.from_numpy(buffers.take((4, 5))) for _ in range(6)]
    assert len({tensor.data_ptr() for tensor in held}) == 6
    references = [weakref.ref(tensor) for tensor in held]
    del held
    assert all(reference() is None for reference in references)
    buffers.take((4, 5))
    assert len(buffers._lent) <= 2, "unneeded memory is freed"


def test_skipped_samples_are_marked(damaged: Callable[..., Index]) -> None:
    index = damaged(6)
    requests = [BatchRequest(np.array([5, 6, 7]), 0, 0)]
    skipping = host(index, requests, BadSamples("skip", 0.1))
    with DeviceLoader(skipping, torch.device("cpu"), input_specs()) as batches:
        (batch,) = list(batches)
    assert batch.valid.tolist() == [True, False, True]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_several_targets_per_sample(index: Index, device: str) -> None:
    columns = ("offset", "length")
    loader = host(index, make_requests(13, 5), targets=Targets("regression", columns, index, columns))
    with DeviceLoader(loader, torch.device(device), input_specs()) as batches:
        found = torch.cat([batch.labels.cpu() for batch in batches])
    rows = np.concatenate([request.rows for request in make_requests(13, 5)])
    expected = np.stack([index.column(name)[rows] for name in columns], axis=1)
    assert found.dtype == torch.float32 and found.tolist() == expected.tolist()


def paired(requests: list[BatchRequest]) -> list[BatchRequest]:
    """Return the same requests with each sample mixed with its neighbour."""
    mixed = [(*add_partners(request.rows, slice(0, len(request.rows) - 1)), request) for request in requests]
    return [BatchRequest(rows, request.epoch, request.step, partners) for rows, partners, request in mixed]


def gpu_batches(
    index: Index, requests: list[BatchRequest], augment: Augment | None, mixing: Mixing | None, wait: bool
) -> list[Batch]:
    device = torch.device("cuda")
    found = []
    with DeviceLoader(host(index, requests, crop=Crop("random")), device, input_specs(), augment, mixing) as batches:
        busy = torch.randn(4096, 4096, device=device)
        for batch in batches:
            if wait:  # the consumer's stream lags behind, so that premature reuse of memory would be visible
                for _ in range(8):
                    busy = busy @ busy / 4096
            tensors = {name: value.clone() for name, value in vars(batch).items() if isinstance(value, torch.Tensor)}
            found.append(dataclasses.replace(batch, **tensors))
            del batch
    torch.cuda.synchronize()
    return found


@pytest.mark.gpu
@pytest.mark.parametrize("wait", [False, True])
@pytest.mark.parametrize("mixing", [None, Mixing(0.8, 1.0, 0.9, seed=1)])
@pytest.mark.parametrize("augment", EXACT + RESAMPLED)
def test_on_a_gpu_every_sample_arrives_once_and_unchanged(
    index: Index, augment: Augment | None, mixing: Mixing | None, wait: bool
) -> None:
    requests = make_requests(60, 13) if mixing is None else paired(make_requests(60, 13))
    found = gpu_batches(index, requests, augment, mixing, wait)
    cpu = DeviceLoader(host(index, requests, crop=Crop("random")), torch.device("cpu"), input_specs(), augment, mixing)
    with cpu as expected:
        for batch, other in zip(found, expected, strict=True):
            assert batch.rows.tolist() == other.rows.tolist()
            assert batch.images.is_contiguous(memory_format=torch.channels_last)
            assert_agree(batch.images.cpu(), other.images, augment in RESAMPLED)
            for name in ("labels", "valid", "partners", "shares"):
                moved, kept = getattr(batch, name), getattr(other, name)
                assert (moved is None) == (kept is None) and (kept is None or torch.equal(moved.cpu(), kept)), name


@pytest.mark.gpu
@pytest.mark.parametrize("augment", EXACT + RESAMPLED)
def test_on_a_gpu_augmentation_never_synchronizes_and_is_reproducible(augment: Augment | None) -> None:
    images = torch.from_numpy(np.stack([photo(SIZE, SIZE, seed=number) for number in range(40)])).cuda()
    parameters = add_positions(augment.parameters(1, np.arange(40), SIZE)) if augment else {}
    moved = {name: torch.from_numpy(values).cuda() for name, values in parameters.items()}
    standardize = DeviceNormalizer(MEAN, STD, torch.device("cuda"), augment, True)
    first = standardize(images, moved)
    torch.cuda.set_sync_debug_mode("error")
    try:
        second = standardize(images, moved)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(first, second)


@pytest.mark.gpu
def test_on_a_gpu_errors_are_raised_with_their_batch(damaged: Callable[..., Index]) -> None:
    index = damaged(6)
    requests = [BatchRequest(np.array([row]), 0, row) for row in range(13)]
    seen = []
    batches = DeviceLoader(host(index, requests), torch.device("cuda"), input_specs())
    with pytest.raises(DataError, match="not an image"), batches:
        for batch in batches:
            seen.append(batch.step)
            torch.cuda.synchronize()
    assert seen == list(range(6))
