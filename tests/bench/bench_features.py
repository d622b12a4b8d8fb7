"""Compares training a head on cached features with training it through the frozen network.

    python tests/bench/bench_features.py               # a minute or two on two cores
    python tests/bench/bench_features.py --images 128 --epochs 2 --rounds 1

EfficientNet-Lite0 at 224 pixels with random weights, which are as fast as trained ones, on noise images from the decoded
cache. Both methods make the same optimizer steps (SGD, the same batches of 32 in the same order) on the same head. One
passes the images through the frozen network in every epoch, without gradients; the other computes the features once and
reads batches of them. The time of the second includes computing the features. The frozen network takes the same time in
every epoch, so only `--measured` of its epochs are timed and the result is extrapolated to all epochs.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
SIZE, BATCH, LR = 224, 32, 0.01


def prepare(folder: Path, count: int) -> Path:
    """Write and pack noise images of two classes; return the packed directory."""
    import cv2
    import numpy as np

    from choral.data.packing.options import PackOptions
    from choral.data.packing.pack import pack

    random = np.random.default_rng(0)
    for number in range(count + 4):
        split = "train" if number < count else "val"
        path = folder / "images" / split / f"class_{number % 2}" / f"{number:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), random.integers(0, 255, (256, 256, 3)).astype(np.uint8))
    pack(str(folder / "images"), folder / "packed", PackOptions(processes=1))
    return folder / "packed"


def train_head(head: Any, batches: Iterable[tuple[Any, Any]]) -> None:
    """Train the head with SGD on batches of (features, labels)."""
    import torch

    optimizer = torch.optim.SGD(head.parameters(), lr=LR, momentum=0.9)
    for values, labels in batches:
        loss = torch.nn.functional.cross_entropy(head(values), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def measure_time(work: Callable[[], Any]) -> tuple[float, Any]:
    """Return the duration of `work` in seconds, and its result."""
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result


def main() -> int:
    """Time both methods in turn and print the ratios of their times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--measured", type=int, default=1, help="epochs through the frozen network that are timed")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    os.environ.setdefault("ACCELERATE_USE_CPU", "true")
    import numpy as np
    import torch

    from choral.config.files import load_config
    from choral.core.process_group import Runtime
    from choral.data.loading.input_pipeline import InputPipeline
    from choral.data.loading.rank_place import RankPlace
    from choral.data.loading.split import open_dataset, open_split
    from choral.data.shards.epoch_plan import EpochPlan
    from choral.models.build import build_model, get_normalization
    from choral.models.features.classifier import ClassifierLayer
    from choral.models.features.extract import FeatureExtractor

    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as place:
        packed = prepare(Path(place), options.images)
        overrides = [f"data.shards={packed}", f"data.image_size={SIZE}", "model.weights=none", "ensemble.members=[]"]
        config = load_config(REPOSITORY / "configs" / "elpv-svm.yaml", overrides)
        run = Runtime("no", 1, 60, Path(place) / "stop")
        rank = RankPlace(0, 1, run.device)
        split = open_split(config, open_dataset(config.data), "train", rank)
        network = build_model(config.model, 2, SIZE, 0).to(run.device).eval()
        classifier, norm, bad_log = ClassifierLayer(network), get_normalization(network), Path(place) / "bad.jsonl"

        def epoch_rows(epoch: int) -> list[Any]:
            plan = EpochPlan(0, epoch, split.index.shard_sizes, BATCH)
            return [plan.batch(step) for step in range(plan.steps)]

        def through_network(head: Any, epochs: int) -> None:
            for epoch in range(epochs):
                with InputPipeline(config, split, rank, norm, bad_log).feature_batches(epoch_rows(epoch), 0) as loader:
                    train_head(
                        head, ((classifier.compute_features(batch.images).clone(), batch.labels) for batch in loader)
                    )

        def from_cache(head: Any, number: int) -> float:
            source = FeatureExtractor(config, run, rank, network, norm, bad_log)
            with torch.no_grad():  # changes the cache key: features are computed in every round
                network.conv_stem.weight[0, 0, 0, 0] = number
            seconds, features = measure_time(lambda: source.extract(split))
            assert features is not None
            values, labels = torch.from_numpy(np.array(features.values)), torch.from_numpy(split.index.labels.copy())
            for epoch in range(options.epochs):
                train_head(head, ((values[rows], labels[rows]) for rows in epoch_rows(epoch)))
            return float(seconds)

        def new_head() -> Any:
            torch.manual_seed(0)
            return torch.nn.Linear(classifier.width, 2)

        total_ratios, training_ratios = [], []
        for number in range(options.rounds):
            first, second = new_head(), new_head()
            slow, _ = measure_time(lambda head=first: through_network(head, options.measured))
            slow *= options.epochs / options.measured
            fast, computing = measure_time(lambda head=second, number=number: from_cache(head, number))
            total_ratios.append(slow / fast)
            training_ratios.append(slow / (fast - computing))
            print(
                f"round {number + 1}: through the network {slow:.1f} s, features {computing:.1f} s + head "
                f"{fast - computing:.2f} s",
                file=sys.stderr,
            )
        run.end()
    print(f"{options.epochs} epochs of head training, {options.images} images, {options.threads} threads\n")
    for name, ratios in (("cached features", training_ratios), ("and computing them", total_ratios)):
        low, high = min(ratios), max(ratios)
        print(f"{name:20} {statistics.median(ratios):8.1f} times as fast ({low:.1f} to {high:.1f})")
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(REPOSITORY / "src"))
    sys.exit(main())
