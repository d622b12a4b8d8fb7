"""The cost of each augmentation preset: CPU milliseconds per image on one core, and the ratio to `none`.

    python tests/bench/bench_augment.py                # about a minute
    python tests/bench/bench_augment.py --rounds 1 --images 128

Images of 500 x 400 pixels from a decoded cache become float batches of 64 x 3 x 224 x 224: crop, resize, augmentation,
normalization, and mixing if the preset mixes. There are no workers and one thread. Each round runs every preset, so
ratios are more reliable than times.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

BATCH, SIZE = 64, 224
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def cpu_ms(folder: Path, preset: str, images: int) -> float:
    """Return the CPU milliseconds per image."""
    import torch

    from choral.config import AugmentConfig, Config, DataConfig, TrainConfig
    from choral.config.augment import PRESETS
    from choral.data.loading.input_pipeline import InputPipeline
    from choral.data.loading.input_spec import Normalization
    from choral.data.loading.rank_place import RankPlace
    from choral.data.loading.split import open_dataset, open_split

    torch.set_num_threads(1)
    config = Config(
        data=DataConfig(shards=str(folder / "packed"), image_size=SIZE, workers=0),
        augment=AugmentConfig(preset=preset, **PRESETS[preset]),  # type: ignore[arg-type]
        train=TrainConfig(batch_size=BATCH),
    )
    place = RankPlace(0, 1, torch.device("cpu"))
    split = open_split(config, open_dataset(config.data), "train", place)
    steps = max(2, images // BATCH)
    pipeline = InputPipeline(config, split, place, Normalization(MEAN, STD), folder / "bad.jsonl")
    with pipeline.training_batches(range(steps + 1)) as batches:
        next(batches)  # warm-up: allocates buffers, loads libraries
        started = time.process_time()
        for _ in range(steps):
            next(batches)
        return 1000 * (time.process_time() - started) / (steps * BATCH)


def main() -> int:
    """Print a row for each preset."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=512, help="images per preset and round")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    from bench_stream import make_images

    from choral.config.augment import PRESETS
    from choral.data.packing.pack import PackOptions, pack

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_images(folder / "images", 256)
        pack(str(folder / "images"), folder / "packed", PackOptions(val=0.0, test=0.0, processes=1))
        results: dict[str, list[float]] = {preset: [] for preset in PRESETS}
        for _ in range(options.rounds):
            for preset, times in results.items():
                times.append(cpu_ms(folder, preset, options.images))
    print(f"{options.images} images per preset and round, {options.rounds} rounds\n")
    print(f"{'preset':10} {'to none':>22} {'CPU ms':>8}")
    for preset, times in results.items():
        ratios = [value / baseline for value, baseline in zip(times, results["none"], strict=True)]
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"{preset:10} {spread:>22} {statistics.median(times):8.2f}")
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))
    sys.exit(main())
