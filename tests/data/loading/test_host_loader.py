"""The host stage: batches do not depend on the workers, and samples that cannot be read are skipped or reported."""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from choral.core.errors import ConfigError, DataError
from choral.data.loading.bad_samples import BadSamples
from choral.data.loading.crop import Crop
from choral.data.loading.decode import decode
from choral.data.loading.decoded_cache import DecodedCache
from choral.data.loading.host_loader import BatchRequest, HostBatch, HostLoader
from choral.data.loading.input_spec import ImageSpec
from choral.data.loading.resize import Resize
from choral.data.loading.sample_pipeline import SamplePipeline
from choral.data.shards.epoch_plan import EpochPlan, evaluation_batches
from choral.data.shards.index import Index
from choral.data.shards.store import LocalStore

SIZE = 32
CROP = Crop("random", seed=5)


def loader(
    index: Index,
    requests: Iterable[BatchRequest],
    *,
    crop: Crop = CROP,
    resize: Resize = "fast",
    cache: DecodedCache | None = None,
    **changes: object,
) -> HostLoader:
    samples = SamplePipeline(index, LocalStore(index.dataset), [ImageSpec(SIZE, crop, resize)], cache=cache)
    settings = {"workers": 2, "worker_kind": "thread", "policy": BadSamples("fail")}
    return HostLoader(samples, requests, **{**settings, **changes})  # type: ignore[arg-type]


def training(index: Index, batch: int = 4, epochs: int = 2) -> Iterator[BatchRequest]:
    for epoch in range(epochs):
        plan = EpochPlan(1, epoch, index.shard_sizes, batch)
        for step in range(plan.steps):
            yield BatchRequest(plan.batch(step), epoch, step)


def evaluation(index: Index, batch: int) -> list[BatchRequest]:
    return [BatchRequest(rows, 0, step) for step, rows in enumerate(evaluation_batches(len(index), 0, 1, batch))]


def contents(batches: HostLoader) -> list[tuple[NDArray[np.uint8], NDArray[np.int64]]]:
    found = []
    with batches:
        for batch in batches:
            assert batch.images.shape == (len(batch.request.rows), SIZE, SIZE, 3)
            assert batch.valid.all()
            found.append((batch.images.copy(), batch.rows.copy()))
            batch.release()
    return found


def check_same_config(
    found: list[tuple[NDArray[np.uint8], NDArray[np.int64]]], index: Index, **changes: object
) -> None:
    others = contents(loader(index, training(index), **changes))
    assert len(others) == len(found) == 6
    for (images, rows), (expected, expected_rows) in zip(others, found, strict=True):
        np.testing.assert_array_equal(rows, expected_rows)
        np.testing.assert_array_equal(images, expected)


@pytest.mark.parametrize("resize", ["antialias", "fast"])
@pytest.mark.parametrize("crop", [Crop("random", seed=5), Crop("center"), Crop("resized")])
def test_a_sample_is_the_same_for_any_threads_and_with_a_cache(
    index: Index, store: LocalStore, tmp_path: Path, resize: str, crop: Crop
) -> None:
    cache = DecodedCache.open_or_build(index, store, tmp_path, 1.0, 1)
    expected = contents(loader(index, training(index), resize=resize, crop=crop, workers=0))
    for workers in (0, 1, 3):
        for used in (None, cache):
            check_same_config(expected, index, resize=resize, crop=crop, workers=workers, cache=used)


def test_a_sample_is_the_same_from_processes(index: Index, store: LocalStore, tmp_path: Path) -> None:
    cache = DecodedCache.open_or_build(index, store, tmp_path, 1.0, 1)
    expected = contents(loader(index, training(index)))
    check_same_config(expected, index, worker_kind="process", workers=1)
    check_same_config(expected, index, worker_kind="process", workers=3, cache=cache)
    check_same_config(expected, index, worker_kind="process", workers=0)
    expected = contents(loader(index, training(index), resize="antialias"))
    check_same_config(expected, index, worker_kind="process", workers=1, resize="antialias")


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("batch", [1, 5, 13, 20])
def test_evaluation_yields_each_sample_once(index: Index, workers: int, batch: int) -> None:
    with loader(index, evaluation(index, batch), workers=workers, crop=Crop("center")) as batches:
        rows, labels = [], []
        for item in batches:
            rows += item.rows.tolist()
            labels += item.labels.tolist()
            item.release()
    assert rows == list(range(13))
    assert labels == index.labels.tolist()


def test_a_rank_without_samples_gets_no_batches_and_no_workers(index: Index) -> None:
    threads = threading.active_count()
    with loader(index, []) as batches:
        assert threading.active_count() == threads
        assert list(batches) == []


def test_random_crops_change_with_the_epoch_only(index: Index) -> None:
    rows = np.array([3, 7])
    requests = [BatchRequest(rows, 0, 0), BatchRequest(rows, 1, 0), BatchRequest(rows[::-1], 0, 9)]
    first, second, third = (images for images, _ in contents(loader(index, requests)))
    assert (first != second).any()
    np.testing.assert_array_equal(first, third[::-1])


def test_evaluation_is_the_same_in_every_epoch(index: Index) -> None:
    rows = np.arange(13)
    for crop in (Crop("center", seed=1), Crop("resized", seed=1)):
        first, second = (
            images
            for images, _ in contents(loader(index, [BatchRequest(rows, 0, 0), BatchRequest(rows, 5, 77)], crop=crop))
        )
        np.testing.assert_array_equal(first, second)


def test_a_batch_stays_until_it_is_released(index: Index) -> None:
    with loader(index, training(index, epochs=5), slots=3) as batches:
        held = [next(batches), next(batches)]
        copies = [batch.images.copy() for batch in held]
        for _ in range(6):
            next(batches).release()
        for batch, copy in zip(held, copies, strict=True):
            np.testing.assert_array_equal(batch.images, copy)
        next(batches)
        with pytest.raises(RuntimeError, match=r"all 3 slots are held: release\(\)"):
            next(batches)
        held[0].release()
        held[0].release()
        third = next(batches)
        with pytest.raises(RuntimeError, match="all 3 slots are held"):
            next(batches)
        third.release()


def test_ready_reports_complete_batches(index: Index) -> None:
    with loader(index, training(index), workers=1) as batches:
        while not batches.ready():
            pass
        next(batches).release()
    with loader(index, training(index), workers=0) as batches:
        assert not batches.ready()
        assert isinstance(next(batches), HostBatch)


def test_closing_stops_threads_during_work(index: Index) -> None:
    before = threading.active_count()
    batches = loader(index, training(index, epochs=1000), workers=3)
    held = next(batches)
    assert threading.active_count() == before + 3
    batches.close()
    batches.close()
    assert threading.active_count() == before
    assert held.images.shape == (4, SIZE, SIZE, 3)
    assert list(batches) == []


def test_a_garbage_collected_loader_stops_its_threads(index: Index) -> None:
    before = threading.active_count()
    batches = loader(index, training(index))
    del batches
    assert threading.active_count() == before


class _ThreadSettings(LocalStore):
    """Records how many threads torch may use in the thread that reads a sample."""

    def read(self, shard: int, offset: int, length: int) -> bytes:
        seen.add((threading.current_thread().name, torch.get_num_threads()))
        return super().read(shard, offset, length)


seen: set[tuple[str, int]] = set()


def test_worker_threads_keep_torch_to_one_thread_and_the_callers_setting(index: Index) -> None:
    before = torch.get_num_threads()
    later: list[int] = []
    try:
        torch.set_num_threads(2)
        samples = SamplePipeline(index, _ThreadSettings(index.dataset), [ImageSpec(SIZE, Crop(), "antialias")])
        requests = evaluation(index, 4)
        seen.clear()
        with HostLoader(samples, requests, workers=3, worker_kind="thread", policy=BadSamples()) as batches:
            for batch in batches:
                batch.release()
        assert torch.get_num_threads() == 2
        other = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
        other.start()
        other.join()
    finally:
        torch.set_num_threads(before)
    assert later == [2], "threads that come later inherit the caller's setting"
    assert {threads for _, threads in seen} == {1} and len(seen) >= 1


def test_a_bug_in_a_worker_is_raised_in_the_consumer_with_its_cause(
    index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: SamplePipeline, row: int, draws: list[float], out: NDArray[np.uint8]) -> None:
        if row == 9:
            raise ZeroDivisionError("a bug")

    monkeypatch.setattr(SamplePipeline, "_load_sample", fail)
    for workers in (0, 2):
        batches = loader(index, evaluation(index, 4), workers=workers)
        for _ in range(2):  # in order: earlier batches come first
            next(batches).release()
        with pytest.raises(RuntimeError, match="decoding failed in epoch 0, step 2") as caught:
            next(batches)
        assert isinstance(caught.value.__cause__, ZeroDivisionError)
        assert list(batches) == []


def test_requests_that_fail_do_so_in_the_callers_thread(index: Index) -> None:
    def requests() -> Iterator[BatchRequest]:
        yield BatchRequest(np.arange(3), 0, 0)
        raise KeyError("plan")

    with pytest.raises(KeyError, match="plan"), loader(index, requests()) as batches:
        next(batches)


def test_a_later_request_may_not_be_larger(index: Index) -> None:
    requests = [BatchRequest(np.arange(2), 0, 0), BatchRequest(np.arange(3), 0, 1)]
    with (
        pytest.raises(ValueError, match="a request of 3 rows after a first one of 2"),
        loader(index, requests) as batches,
    ):
        next(batches)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("cached", [False, True])
def test_a_bad_sample_is_named(damaged: Callable[..., Index], tmp_path: Path, workers: int, cached: bool) -> None:
    index = damaged(6, 11)
    cache = DecodedCache.open_or_build(index, LocalStore(index.dataset), tmp_path / "cache", 1.0, 1) if cached else None
    record = index.row(6)
    batches = loader(index, evaluation(index, 5), workers=workers, cache=cache)
    next(batches).release()
    where = f"train-00000{record.shard}.tar: sample '{record.key}' at byte {record.offset}: not an image"
    with pytest.raises(DataError, match=where):
        next(batches)


@pytest.mark.parametrize(("kind", "workers"), [("thread", 0), ("thread", 2), ("process", 2)])
def test_bad_samples_are_skipped_counted_and_listed(
    damaged: Callable[..., Index], tmp_path: Path, kind: str, workers: int
) -> None:
    index = damaged(6, 11)
    log = tmp_path / "bad.jsonl"
    policy = BadSamples("skip", 0.2, log)
    rows = np.array([5, 6, 11, 12])
    requests = [BatchRequest(rows, epoch, 0) for epoch in range(3)]
    with loader(index, requests, worker_kind=kind, workers=workers, policy=policy) as batches:
        for batch in batches:
            assert batch.valid.tolist() == [True, False, False, True]
            assert not batch.images[1:3].any() and batch.images[[0, 3]].any()
            assert batch.labels.tolist() == index.labels[rows].tolist()
            batch.release()
    assert policy.count == 2
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["key"] for line in lines] == index.keys([6, 11]), "each is listed once, not once per epoch"
    assert lines[0]["shard"].endswith(".tar") and lines[0]["offset"] == index.row(6).offset
    assert "not an image" in lines[0]["reason"]


def test_too_many_bad_samples_fail(damaged: Callable[..., Index]) -> None:
    index = damaged(6, 7, 11)
    with pytest.raises(DataError, match=r"3 of 13 samples cannot be read: more than max_bad_fraction 0.2. Last: .*tar"):
        contents_of_all(loader(index, evaluation(index, 5), policy=BadSamples("skip", 0.2)))
    contents_of_all(loader(index, evaluation(index, 5), policy=BadSamples("skip", 3 / 13)))


def contents_of_all(batches: HostLoader) -> None:
    with batches:
        for batch in batches:
            batch.release()


def test_a_shard_cut_short_is_named(damaged: Callable[..., Index]) -> None:
    index = damaged()
    record = index.row(12)
    path = index.dataset.shard_path(record.shard)
    path.write_bytes(path.read_bytes()[: record.offset + 10])
    with pytest.raises(DataError, match=rf"{path.name}.*{record.key}.*truncated"):
        contents_of_all(loader(index, evaluation(index, 5)))


def test_shrinking_in_the_decoder_is_close_and_excludes_a_cache(
    index: Index, store: LocalStore, tmp_path: Path
) -> None:
    requests = evaluation(index, 13)
    for crop in (Crop("resized"), Crop("random", scale=(0.9, 1.0))):
        (whole, _), (shrunk, _) = (
            contents(loader(index, requests, resize="antialias", crop=dataclasses.replace(crop, shrink=shrink)))[0]
            for shrink in (False, True)
        )
        assert (whole != shrunk).any(), "no image was large enough"
        assert np.abs(whole.astype(int) - shrunk).mean() < 6
    cache = DecodedCache.open_or_build(index, store, tmp_path, 1.0, 1)
    with pytest.raises(ConfigError, match=r"crop.shrink cannot be combined with a decoded cache"):
        loader(index, requests, crop=Crop("random", shrink=True), cache=cache)


def test_center_is_resize_then_crop(index: Index, store: LocalStore) -> None:
    from PIL import Image

    record = index.row(0)
    image = Image.fromarray(decode(store.read(record.shard, record.offset, record.length)))
    short = int(SIZE / 0.875)
    scale = short / min(image.size)
    width, height = (short if side == min(image.size) else int(short * side / min(image.size)) for side in image.size)
    assert scale < 1
    left, top = round((width - SIZE) / 2), round((height - SIZE) / 2)
    resized = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
    expected = resized[top : top + SIZE, left : left + SIZE].astype(int)
    ((images, _),) = contents(
        loader(index, [BatchRequest(np.array([0]), 0, 0)], crop=Crop("center", crop_pct=0.875), resize="antialias")
    )
    assert np.abs(images[0] - expected).max() <= 1
