"""Run under the launcher: take ten SGD steps, and leave what each rank saw and what the network became.

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


def smooth(network: nn.Module) -> None:
    """Take out the kinks: rounding of 1e-6 between ranks turns a ReLU that is near 0 on or off, and the networks part by some
    1e-3, on which step depends on the processor."""
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
    smooth(trainer.network)
    seen = []
    with trainer.batches_from(0) as loader:

        def watched():
            for batch in loader:
                seen.append([batch.step, trainer.train_split.index.keys(batch.rows), float(batch.images.sum())])
                yield batch

        batches = watched()
        for step in range(10):
            trainer.train_step(batches, step)
    (out / f"seen-{run.rank}.json").write_text(json.dumps(seen))
    if run.is_main:
        save_file(
            {name: value.contiguous() for name, value in trainer.network.state_dict().items()},
            out / "network.safetensors",
        )
    run.end()


if __name__ == "__main__":
    main()
