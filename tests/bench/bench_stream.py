"""Throughput of the input pipeline: choral against torchvision's ImageFolder and DataLoader, on this machine.

    python tests/bench/bench_stream.py                 # about three minutes on two cores
    python tests/bench/bench_stream.py --images 300 --rounds 1

The benchmark makes and packs JPEGs of 500 x 400 pixels (about 64 kB). In each round, every pipeline reads them in a new
process. All apply random resized crops and flips with two workers, and produce normalized float batches of 64 x 3 x 224
x 224. The rate is measured from the first batch on. Other programs slow down all pipelines of a round alike, so ratios
are more reliable than rates. CPU and memory include child processes; memory is the peak proportional set size, which
counts shared pages once.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

PEER = "imagefolder"
BATCH, SIZE, WORKERS = 64, 224, 2
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def make_images(folder: Path, count: int) -> None:
    """Write textured JPEGs of two classes: noise at several scales, so that they compress like photographs."""
    import cv2
    import numpy as np

    random = np.random.default_rng(0)
    textures = []
    for _ in range(16):
        image = np.full((500, 600, 3), 128, np.float32)
        for cells, strength in ((4, 60), (16, 40), (64, 30), (200, 28)):
            small = random.normal(size=(cells, cells, 3)).astype(np.float32)
            image += strength * cv2.resize(small, (600, 500), interpolation=cv2.INTER_CUBIC)
        textures.append(np.clip(image, 0, 255).astype(np.uint8))
    for number in range(count):
        top, left = random.integers(0, 100, 2)
        image = textures[number % len(textures)][top : top + 400, left : left + 500]
        path = folder / f"class_{number % 2}" / f"{number:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), image, [cv2.IMWRITE_JPEG_QUALITY, 78])


def imagefolder(data: Path, epochs: int) -> Iterator[Any]:
    """torchvision, as in its documentation."""
    import torch
    from torchvision import datasets, transforms

    steps = [
        transforms.RandomResizedCrop(SIZE, antialias=True),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize(MEAN, STD),
    ]
    images = datasets.ImageFolder(str(data / "images"), transforms.Compose(steps))
    loader = torch.utils.data.DataLoader(
        images, BATCH, shuffle=True, num_workers=WORKERS, drop_last=True, persistent_workers=True
    )
    for _ in range(epochs):
        for batch, _labels in loader:
            yield batch


def choral(
    data: Path, epochs: int, resize: str = "antialias", worker_kind: str = "thread", cached: bool = False
) -> Iterator[Any]:
    """The host and device stages of choral."""
    import torch

    from choral.config import AugmentConfig
    from choral.data.augment.parameters import Augment
    from choral.data.loading.bad_samples import BadSamples
    from choral.data.loading.crop import Crop
    from choral.data.loading.decoded_cache import DecodedCache
    from choral.data.loading.device_loader import DeviceLoader
    from choral.data.loading.host_loader import BatchRequest, HostLoader
    from choral.data.loading.input_spec import ImageSpec, InputSpec
    from choral.data.loading.sample_pipeline import SamplePipeline
    from choral.data.shards.epoch_plan import EpochPlan
    from choral.data.shards.index import Dataset, Index
    from choral.data.shards.store import LocalStore

    dataset = Dataset.open(data / "packed")
    index, store = Index.open(dataset, "train"), LocalStore(dataset)
    cache = DecodedCache.open_or_build(index, store, data / "cache", 64.0, WORKERS) if cached else None

    def requests() -> Iterable[BatchRequest]:
        for epoch in range(epochs):
            plan = EpochPlan(0, epoch, index.shard_sizes, BATCH)
            for step in range(plan.steps):
                yield BatchRequest(plan.batch(step), epoch, step)

    image_spec = ImageSpec(SIZE, Crop("random"), resize)  # type: ignore[arg-type]
    samples = SamplePipeline(index, store, [image_spec], cache=cache)
    policy = BadSamples("fail")
    host = HostLoader(samples, requests(), workers=WORKERS, worker_kind=worker_kind, policy=policy)  # type: ignore[arg-type]
    augment = Augment(AugmentConfig())
    with DeviceLoader(host, torch.device("cpu"), [InputSpec(image_spec, MEAN, STD)], augment) as loader:
        for batch in loader:
            yield batch.images


PIPELINES: dict[str, Callable[[Path, int], Iterator[Any]]] = {
    PEER: imagefolder,
    "choral, antialias": choral,
    "choral, fast": lambda data, epochs: choral(data, epochs, "fast"),
    "choral, cached": lambda data, epochs: choral(data, epochs, cached=True),
    "choral, antialias, processes": lambda data, epochs: choral(data, epochs, worker_kind="process"),
}


def process_tree() -> list[int]:
    """Return the process ids of this process and its descendants."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    pids, frontier = [os.getpid()], {os.getpid()}
    while frontier := {pid for pid, parent in parents.items() if parent in frontier}:
        pids += frontier
    return pids


def cpu_s() -> float:
    """Return the CPU time of this process and its living descendants."""
    ticks = 0
    for pid in process_tree():
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def memory_mib() -> float:
    """Return the proportional set size of this process and its descendants."""
    total = 0
    for pid in process_tree():
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024


def run_one(name: str, data: Path, epochs: int) -> dict[str, float]:
    """Read all epochs through one pipeline and measure it."""
    peak = [0.0]
    finished = threading.Event()

    def watch() -> None:
        while not finished.wait(0.5):
            peak[0] = max(peak[0], memory_mib())

    watcher = threading.Thread(target=watch, daemon=True)
    started = time.perf_counter()
    watcher.start()
    images, first_s, cpu_at_first, checksum = 0, 0.0, 0.0, 0.0
    batches = PIPELINES[name](data, epochs)
    for batch in batches:
        assert batch.shape == (BATCH, 3, SIZE, SIZE), batch.shape
        checksum += float(batch[0, 0, 0, 0])
        if not images:
            first_s, cpu_at_first = time.perf_counter() - started, cpu_s()
            begin = time.perf_counter()
        images += BATCH
        if images == epochs * (count_images(data) // BATCH) * BATCH:
            elapsed, cpu = time.perf_counter() - begin, cpu_s() - cpu_at_first
    finished.set()
    counted = images - BATCH
    return {"rate": counted / elapsed, "cpu_ms": 1000 * cpu / counted, "first_s": first_s, "memory_mib": peak[0]}


def count_images(data: Path) -> int:
    """Return the number of images, as recorded when they were made."""
    return int((data / "count").read_text())


def prepare(data: Path, count: int) -> None:
    """Make and pack the images, and decode them into the cache."""
    from choral.data.packing.pack import PackOptions, pack

    make_images(data / "images", count)
    pack(str(data / "images"), data / "packed", PackOptions(val=0.0, test=0.0, processes=WORKERS))
    (data / "count").write_text(str(count))
    for _ in choral(data, 1, cached=True):
        break


def print_row(name: str, results: list[dict[str, float]], peers: list[dict[str, float]]) -> None:
    """Print one row: ratios within each round, medians of the rest."""
    ratios = [result["rate"] / peer["rate"] for result, peer in zip(results, peers, strict=True)]
    median = {key: statistics.median(result[key] for result in results) for key in results[0]}
    print(
        f"{name:30} {statistics.median(ratios):6.2f} ({min(ratios):.2f} to {max(ratios):.2f}) {median['rate']:9.0f}"
        f" {median['cpu_ms']:9.2f} {median['memory_mib']:9.0f} {median['first_s']:8.2f}"
    )


def main() -> int:
    """Compare the pipelines, or run one of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--only", nargs="+", choices=PIPELINES, help="pipelines to compare with ImageFolder")
    parser.add_argument("--run", choices=PIPELINES, help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        print(json.dumps(run_one(options.run, options.data, options.epochs)))
        return 0
    names = [PEER, *(name for name in options.only or PIPELINES if name != PEER)]
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        prepare(data, options.images)
        results: dict[str, list[dict[str, float]]] = {name: [] for name in names}
        for number in range(options.rounds):
            for name in names:
                command = [sys.executable, __file__, "--run", name, "--data", folder, "--epochs", str(options.epochs)]
                completed = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                results[name].append(json.loads(completed.stdout.splitlines()[-1]))
            print(f"round {number + 1} of {options.rounds}", file=sys.stderr)
    scope = f"{options.images} images, {options.epochs} epochs, {options.rounds} rounds"
    print(f"{scope}, {WORKERS} workers, {os.cpu_count()} cores\n")
    print(f"{'':30} {'to ImageFolder':>22} {'images/s':>9} {'CPU ms':>9} {'MiB':>9} {'first s':>8}")
    for name in names:
        print_row(name, results[name], results[PEER])
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))
    sys.exit(main())
