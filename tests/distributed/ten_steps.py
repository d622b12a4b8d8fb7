"""Run under the launcher: take ten SGD steps, and leave what each rank saw and what the network became after two and ten.

accelerate launch ten_steps.py CONFIG OUT
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from safetensors.torch import save_file

from choral.configfile import load_config
from choral.runfolder import RunFolder
from choral.runtime import Runtime
from choral.train.trainer import Trainer


def main() -> None:
    config, out = load_config(sys.argv[1]), Path(sys.argv[2])
    run = Runtime("no", config.train.accumulate_steps, 120, out / "stop")
    trainer = Trainer(config, RunFolder(out), run)
    seen = []
    with trainer.batches_from(0) as loader:

        def watched():
            for batch in loader:
                seen.append([batch.step, trainer.train_split.index.keys(batch.rows), float(batch.images.sum())])
                yield batch

        batches = watched()
        for step in range(10):
            trainer.train_step(batches, step)
            if run.is_main and step + 1 in (2, 10):
                network = {name: value.contiguous() for name, value in trainer.network.state_dict().items()}
                save_file(network, out / f"network-{step + 1}.safetensors")
    (out / f"seen-{run.rank}.json").write_text(json.dumps(seen))
    run.end()


if __name__ == "__main__":
    main()
