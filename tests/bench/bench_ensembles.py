"""Ensembles of elpv at equal training cost: three seeds, three architectures, three bags, three snapshots, one long run.

    python tests/bench/bench_ensembles.py                  # half an hour on two idle cores; again: continues, or prints

The config is the demo's (EfficientNet-Lite0 from ImageNet weights), on smaller images and for fewer epochs. Each arm costs as
many multiply-adds as three trainings of the first: the long run and the snapshots have three times the epochs; the three
architectures have fewer each, according to their multiply-adds at this size. (Bags hold as many images as the split, in
expectation.) Nothing is tuned per arm; learning rate and weight decay are the demo's. Each arm is a `choral run` under
runs/compare-ARM with single-threaded networks; the two arms of a single network run side by side. The table has the soft vote
on the test split, with and without the eight views, with intervals, and the paired difference to the three seeds.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

REPOSITORY = Path(__file__).resolve().parents[2]
ARCHITECTURES = ("tf_efficientnet_lite0", "tf_efficientnet_lite1", "tf_efficientnet_lite2")


def multiply_adds(name: str, size: int) -> int:
    """Return the floating-point operations of a network's forward pass on one image."""
    import timm
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    network = timm.create_model(name, num_classes=2).eval()
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 3, size, size))
    return int(counter.get_total_flops())


def build_arms(epochs: float, size: int) -> dict[str, list[str]]:
    """Return the config overrides of each arm."""
    costs = [multiply_adds(name, size) for name in ARCHITECTURES]
    share = 3 * costs[0] / sum(costs)
    return {
        "seeds": ["ensemble.seeds=3", f"train.epochs={epochs}"],
        "architectures": [
            f"ensemble.architectures=[{', '.join(ARCHITECTURES)}]",
            "model.weights=auto",
            f"train.epochs={epochs * share:.3f}",
        ],
        "bagging": ["ensemble.bagging=3", f"train.epochs={epochs}"],
        "snapshots": ["ensemble.snapshots=3", f"train.epochs={3 * epochs}"],
        "long": [f"train.epochs={3 * epochs}"],
    }


def start(arm: str, arm_overrides: list[str], options: argparse.Namespace) -> subprocess.Popen[bytes]:
    """Start a process that trains, evaluates and scores one arm, unless this is done already."""
    overrides = [
        f"run=compare-{arm}",
        f"step={arm}",
        "ensemble.members=[]",
        f"data.shards={options.shards}",
        f"data.image_size={options.size}",
        "tracking.wandb=off",
        "tracking.worst_images=0",
        *arm_overrides,
    ]
    command = [sys.executable, "-m", "choral", "run", str(REPOSITORY / "configs" / "elpv-demo.yaml"), *overrides]
    print(f"{arm}: {' '.join(arm_overrides)}", file=sys.stderr, flush=True)
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})


def finish(running: list[subprocess.Popen[bytes]]) -> None:
    """Wait for arms, and exit if one of them failed or was stopped."""
    for process in running:
        if code := process.wait():
            sys.exit(code)


def build_row(arm: str, view: str, baseline: np.ndarray | None) -> tuple[str, np.ndarray]:
    """Return an arm's line of the table, and 1 for each sample that it predicts correctly."""
    from choral.ensembles.rules import soft_vote
    from choral.inference.ledger import Ledger
    from choral.metrics.intervals import bootstrap, paired_bootstrap
    from choral.metrics.per_sample import correct, log_losses, top_class

    ledger = Ledger.open(Path("runs") / f"compare-{arm}" / "predictions" / "test.parquet")
    mean = np.concatenate([soft_vote(block) for block in ledger.blocks(view)])
    hits, losses = correct(ledger.labels, top_class(mean)), log_losses(ledger.labels, mean)
    accuracy = bootstrap(100 * hits)
    line = f"{arm:15}{accuracy.value:7.2f} [{accuracy.low:.2f}, {accuracy.high:.2f}]"
    if baseline is None:
        line += " " * 24
    else:
        gain = paired_bootstrap(100 * hits, 100 * baseline)
        line += f"{gain.value:+8.2f} [{gain.low:+.2f}, {gain.high:+.2f}]"
    return f"{line}{losses.mean():10.4f}", hits


def main() -> int:
    """Train the arms that are not trained yet and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", default="data/elpv", help="data set of `choral pack elpv`; packed if missing")
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--epochs", type=float, default=5, help="of each of the three seeds")
    parser.add_argument("--only", nargs="*", help="arms to train in this call; the tables list all that are done")
    options = parser.parse_args()
    arms = build_arms(options.epochs, options.size)
    selected = {arm: overrides for arm, overrides in arms.items() if not options.only or arm in options.only}
    alone = [arm for arm in ("snapshots", "long") if arm in selected]
    for together in [*([arm] for arm in selected if arm not in alone), alone]:
        finish([start(arm, selected[arm], options) for arm in together])
    print(f"elpv, test split, soft vote, {options.size} pixels, cost of 3 x {options.epochs:g} epochs")
    for view, name in (("identity", "without views"), ("tta", "mean over eight flips and rotations")):
        print(f"\n{name:32}  {'to 3 seeds [95 %]':>20}{'log loss':>12}")
        baseline = None
        for arm in arms:
            if (Path("runs") / f"compare-{arm}" / "predictions" / "test.parquet").exists():
                line, hits = build_row(arm, view, baseline)
                baseline = hits if arm == "seeds" else baseline
                print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
