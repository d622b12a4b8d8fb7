"""Started by the launcher: makes ten SGD steps, and writes the batches of each rank and the resulting network.

accelerate launch ten_steps.py CONFIG OUT
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from safetensors.torch import save_file
from torch import nn

from choral.config.files import load_config
from choral.core.process_group import Runtime
from choral.runs.run_dir import RunDir
from choral.training.trainer import Trainer


def replace_non_smooth_layers(network: nn.Module) -> None:
    """Replace ReLU and max pooling, so that rounding differences between ranks stay small.

    Differences of 1e-6 can switch a ReLU near 0, after which the networks differ by about 1e-3; the step at which that
    happens depends on the processor.
    """
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU):
                setattr(module, name, nn.SiLU())
            elif isinstance(child, nn.MaxPool2d):
                setattr(module, name, nn.AvgPool2d(child.kernel_size, child.stride, child.padding))


def main() -> None:
    config, out = load_config(sys.argv[1]), Path(sys.argv[2])
    run = Runtime("no", config.train.accumulate_steps, 120, out / "stop")
    trainer = Trainer(config, RunDir(out), run)
    replace_non_smooth_layers(trainer.network)
    batches_seen = []
    with trainer.batches_from(0) as loader:

        def recorded():
            for batch in loader:
                batches_seen.append([batch.step, trainer.train_split.index.keys(batch.rows), float(batch.images.sum())])
                yield batch

        batches = recorded()
        for step in range(10):
            trainer.train_step(batches, step)
    (out / f"batches-{run.rank}.json").write_text(json.dumps(batches_seen))
    if run.is_main:
        save_file(
            {name: value.contiguous() for name, value in trainer.network.state_dict().items()},
            out / "network.safetensors",
        )
    run.end()


if __name__ == "__main__":
    main()
