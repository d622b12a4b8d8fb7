"""Compares a linear head, full fine-tuning and lp_ft (one after the other) on elpv at equal training cost.

    python tests/bench/bench_lp_ft.py                  # a quarter of an hour on one core

EfficientNet-Lite0 with ImageNet weights, several seeds (of head, sample order and augmentation), the same schedule for
`full` and `lp_ft`. Each uses the learning rate with the lowest validation log loss for the first seed, because a fitted
head needs smaller steps than a random one. `lp_ft` pays for its linear part: computing the features is a forward pass
over the training data, about a third of the work of an epoch, so it makes a third of an epoch fewer steps than `full`.
`linear` makes no optimizer steps and does not depend on the seed. Results are those of the last step on the test split,
without test-time augmentation.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


def overrides(strategy: str, seed: int, rate: float, options: argparse.Namespace, folder: Path) -> list[str]:
    """Return the overrides of the demo config for one run."""
    third = round(options.epoch_steps / 3)
    return [
        f"finetune.strategy={strategy}",
        f"seed={seed}",
        f"data.shards={options.shards}",
        f"data.image_size={options.size}",
        f"train.steps={options.steps - third if strategy == 'lp_ft' else options.steps}",
        f"train.lr={rate}",
        "train.warmup_epochs=0.25",
        "train.eval_every_epochs=1000",
        "train.save_every_steps=1000000",
        "ensemble.members=[]",
        "evaluate.views=identity",
        "evaluate.splits=[test]",
        "tracking.wandb=off",
        f"run={folder.name}",
    ]


def run_one(
    strategy: str, seed: int, rate: float, options: argparse.Namespace, place: Path
) -> tuple[float, float, float]:
    """Train and evaluate; return the validation log loss and the test accuracy and log loss."""
    import numpy as np

    from choral.config.files import load_config
    from choral.inference.evaluation_pass import evaluate
    from choral.inference.ledger import Ledger
    from choral.runs.run_dir import RunDir
    from choral.training.loop import train

    folder = place / f"{strategy}-{seed}-{rate:g}"
    config = load_config(REPOSITORY / "configs" / "elpv-demo.yaml", overrides(strategy, seed, rate, options, folder))
    run_folder = RunDir(folder)
    run_folder.path.mkdir(parents=True)
    run_folder.store_config(config)
    train(config, run_folder, options.run)
    evaluate(config, run_folder, options.run)
    ledger = Ledger.open(run_folder.predictions / "test.parquet")
    probabilities = ledger.predictions("model", "identity")
    right = probabilities[np.arange(len(ledger.labels)), ledger.labels]
    validation = (run_folder.result or {})["log_loss"]
    accuracy, loss = (probabilities.argmax(1) == ledger.labels).mean(), -np.log(right).mean()
    return float(validation), float(accuracy), float(loss)


def summarize(accuracies: dict[str, list[float]]) -> str:
    """Return one line: by how much lp_ft beats the others on average, on how many seeds, and whether that is significant."""
    parts = []
    for other in ("linear", "full"):
        differences = [100 * (a - b) for a, b in zip(accuracies["lp_ft"], accuracies[other], strict=True)]
        mean = statistics.mean(differences)
        won = sum(difference > 0 for difference in differences)
        spread = statistics.stdev(differences) if len(differences) > 1 else math.inf
        clear = abs(mean) > 2 * spread / math.sqrt(len(differences))
        parts.append(
            f"{'above' if mean > 0 else 'NOT above'} {other} ({mean:+.1f} points, {won} of {len(differences)} seeds, "
            f"{'more' if clear else 'no more'} than twice its standard error)"
        )
    return "lp_ft is " + " and ".join(parts)


def main() -> int:
    """Train all strategies and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", default="data/elpv", help="output of `choral pack elpv`")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=212, help="with batches of 32; 53 are an epoch")
    parser.add_argument("--lr", type=float, nargs="+", default=[1e-4, 5e-4])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    import torch

    from choral.core.process_group import Runtime

    os.environ.setdefault("ACCELERATE_USE_CPU", "true")
    torch.set_num_threads(options.threads)
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    options.epoch_steps = 1706 // 32
    accuracies: dict[str, list[float]] = {"linear": [], "full": [], "lp_ft": []}
    losses: dict[str, list[float]] = {name: [] for name in accuracies}
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        options.run = Runtime("no", 1, 60, Path(place) / "stop")
        chosen = {"linear": options.lr[0]}  # linear does not use it
        for seed in range(options.seeds):
            for name in accuracies:
                if name == "linear" and seed:  # the same for every seed
                    accuracy, loss = accuracies[name][0], losses[name][0]
                else:
                    rates = [chosen[name]] if name in chosen else options.lr
                    found = {rate: run_one(name, seed, rate, options, Path(place)) for rate in rates}
                    chosen[name] = min(rates, key=lambda rate: found[rate][0])
                    _, accuracy, loss = found[chosen[name]]
                accuracies[name].append(accuracy)
                losses[name].append(loss)
                minutes = (time.monotonic() - started) / 60
                print(f"seed {seed}, {name}: {accuracy:.4f} ({minutes:.1f} min)", file=sys.stderr, flush=True)
        options.run.end()
    print(f"{options.steps} steps of 32 at {options.size} pixels, {options.seeds} seeds, test split\n")
    print(f"{'':8} {'accuracy %':>12} {'spread':>8} {'log loss':>10} {'rate':>8}")
    for name, values in accuracies.items():
        spread = 100 * statistics.stdev(values) if len(values) > 1 else 0.0
        print(
            f"{name:8} {100 * statistics.mean(values):12.2f} {spread:8.2f} {statistics.mean(losses[name]):10.4f}"
            + ("" if name == "linear" else f" {chosen[name]:8.0e}")
        )
    print(f"\n{summarize(accuracies)}")
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(REPOSITORY / "src"))
    sys.exit(main())
