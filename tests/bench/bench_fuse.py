"""A network whose BatchNorms are folded into the layers before them, beside the same network as it was trained.

    python tests/bench/bench_fuse.py                                     # two minutes on one core
    python tests/bench/bench_fuse.py --model resnet50 --size 224 --threads 2

Random weights and statistics, the same in both arms; batches of random numbers, no images. The arms run in turn within a
round, and which one goes first alternates, so that ratios hold on a busy machine; CPU seconds are those of all threads.
Logits of both must agree to 1e-5 of the largest.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
from pathlib import Path
from typing import Any

Seconds = tuple[float, float]
"""By the clock, and of the CPU."""


def made_networks(model: str, size: int, channels_last: bool) -> tuple[Any, Any, int]:
    """Return a network, the same one folded and stripped, and how many BatchNorms were folded."""
    import torch

    from choral.config import ModelConfig
    from choral.deploy.bundle.fuse import find_foldable, fold, strip
    from choral.models.build import build_model

    network = build_model(ModelConfig(name=model, weights="none", channels_last=channels_last), 10, size, seed=0).eval()
    for module in network.modules():
        if isinstance(getattr(module, "running_var", None), torch.Tensor):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    fused = copy.deepcopy(network)
    pairs = find_foldable(fused, torch.zeros(1, 3, size, size))
    fold(fused, pairs)
    strip(fused, pairs)
    return network, fused, len(pairs)


def seconds_of(network: Any, images: Any, batches: int) -> Seconds:
    """Return how long a network takes for some batches."""
    clock, cpu = time.perf_counter(), time.process_time()
    for _ in range(batches):
        network(images)
    return time.perf_counter() - clock, time.process_time() - cpu


def measure(size: int, options: argparse.Namespace) -> bool:
    """Print one row; return whether both arms say the same."""
    import torch

    network, fused, folded = made_networks(options.model, size, not options.channels_first)
    images = torch.randn(options.batch_size, 3, size, size, generator=torch.Generator().manual_seed(1))
    if not options.channels_first:
        images = images.to(memory_format=torch.channels_last)
    arms, rounds = {"plain": network, "fused": fused}, []
    with torch.inference_mode():
        said = {name: arm(images) for name, arm in arms.items()}  # the first call of each is left out
        for number in range(options.rounds):
            order = list(arms) if number % 2 == 0 else list(arms)[::-1]
            rounds.append({name: seconds_of(arms[name], images, options.batches) for name in order})
    difference = float((said["plain"] - said["fused"]).abs().max() / said["plain"].abs().max())
    cells = []
    for kind in (0, 1):
        ratios = [found["plain"][kind] / found["fused"][kind] for found in rounds]
        cells.append(f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    each = 1000 / options.batches / options.batch_size
    plain, after = (each * statistics.median(found[name][1] for found in rounds) for name in arms)
    print(f"{size:4}{folded:8}{plain:11.2f}{after:11.2f}{cells[1]:>22}{cells[0]:>22}{difference:11.0e}", flush=True)
    return difference <= 1e-5


def main() -> int:
    """Measure in rounds and print ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tf_efficientnet_lite0", help="of timm (default: %(default)s)")
    parser.add_argument("--size", type=int, nargs="+", default=[128, 224], help="sides in pixels (default: 128 224)")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--batches", type=int, default=5, help="of an arm in a round")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--channels-first", action="store_true", help="not the memory format that choral runs in")
    options = parser.parse_args()
    import torch

    torch.set_num_threads(options.threads)
    print(f"{options.model}, batches of {options.batch_size}, {options.threads} threads, {options.rounds} rounds\n")
    print(f"{'':4}{'folded':>8}{'plain ms':>11}{'fused ms':>11}{'plain/fused, CPU':>22}{'clock':>22}{'apart':>11}")
    agree = [measure(size, options) for size in options.size]
    return 0 if all(agree) else 1


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))
    sys.exit(main())
