"""Runs of members with random weights, evaluated, and their bundles: no step is made, no process started."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from choral.cli import main
from choral.cli.workflow.export import export
from choral.config import Config
from choral.config.files import load_config
from choral.deploy.bundle.policy_choice import PolicyRequest
from choral.inference.evaluation_pass import evaluate
from choral.runs.run_dir import RunDir
from made_members import made_members

QUIET = Console(quiet=True)


def made_run(shards: Path, path: Path) -> RunDir:
    """Return a run of three members, of two sizes, that has been evaluated on val and test, and its bundle beside."""
    from accelerate.state import AcceleratorState

    from choral.core.process_group import Runtime

    (path / "cells.yaml").write_text(
        f"data: {{shards: '{shards}', image_size: 32, eval_crop: resized, cache_gib: 0}}\n"
        "model: {name: test_resnet, weights: none}\n"
        "evaluate: {views: [identity, rot90], batch_size: 4, checkpoint: last}\n"
        "ensemble: {members: [{name: a}, {name: b}, {name: c, set: {data.image_size: 40, data.eval_crop: center}}]}\n"
        "export: {golden: 3}\n"
        "tracking: {wandb: 'off'}\n"
    )
    config = load_config(path / "cells.yaml")
    folder = made_members(config, path / "cells")
    AcceleratorState._reset_state(reset_partial_state=True)  # Accelerate keeps one for the process
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "true")
        patch.setattr(Runtime, "_install_handlers", lambda run: None)  # they would stay: this is no fixture of one test
        torch.set_num_threads(1)
        evaluate(config, folder, Runtime("no", 1, 60, folder.stop_file))
    export(folder, config, PolicyRequest(), folder.path / "bundle", False, QUIET)
    return folder


def labelled(path: Path, task: str) -> Config:
    """Return the config of a tiny network for labels, or for how many there are, of 30 images of noise that are packed."""
    rng, lines = np.random.default_rng(0), ["image,label,count"]
    for number in range(30):
        names = [name for name in ("round", "red") if rng.random() < 0.5]
        Image.fromarray(rng.integers(0, 256, (12, 14, 3), dtype=np.uint8)).save(path / f"{number}.png")
        lines.append(f"{number}.png,{';'.join(names)},{len(names)}")
    (path / "list.csv").write_text("\n".join(lines) + "\n")
    assert main(["pack", str(path / "list.csv"), str(path / "packed"), "--task", "multilabel", "--processes", "1"]) == 0
    (path / "labelled.yaml").write_text(
        f"task: {task}\n"
        f"data: {{shards: '{path / 'packed'}', image_size: 32{', targets: [count]' if task == 'regression' else ''}}}\n"
        "model: {name: test_resnet, weights: none}\n"
        "tracking: {wandb: 'off'}\n"
    )
    return load_config(path / "labelled.yaml", ["evaluate.checkpoint=last", "export.golden=2"])
