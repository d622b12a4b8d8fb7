"""Planted weaknesses: is the right family found, does `improve` mend it, and is nothing found where nothing is planted?

    python tests/bench/bench_planted.py [rotation dark small faded upside-down none] [--out FOLDER]

Letters are the images; training shows them upright, lit and of one size, and half of the validation and test images have the
weakness. A small network from scratch, all of it in this process: some minutes a weakness on one core.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
import tempfile
from pathlib import Path

import pytest
from rich.console import Console

sys.path.insert(0, str(Path(__file__).parent.parent / "support"))

from choral.analysis.advice import advice_of
from choral.cli.workflow.improvement import improve
from choral.config.files import load_config
from choral.data.packing.options import PackOptions
from choral.data.packing.pack import pack
from choral.ensembles.score_rows import Numbers
from choral.runs.run_dir import RunDir
from in_process import launch_in_process
from planted import WEAKNESSES, planted

CONFIG = """
data: {{shards: shards-{name}, image_size: 32, eval_crop: resized}}
model: {{name: test_resnet, weights: none}}
augment: {{preset: none}}
train: {{epochs: 16, batch_size: 32, lr: 1e-2, eval_every_epochs: 4}}
tracking: {{wandb: 'off', worst_images: 0}}
project: planted
"""
COUNTS = {"train": 480, "val": 320, "test": 320}


def main() -> None:
    """Print a line a weakness."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("weaknesses", nargs="*", default=[*WEAKNESSES, "none"])
    parser.add_argument("--out", type=Path, help="keep the data and runs here; started again, it continues")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, pytest.MonkeyPatch.context() as patch:
        place = options.out or Path(scratch)
        place.mkdir(parents=True, exist_ok=True)
        os.chdir(place)
        launch_in_process(patch)
        for name in options.weaknesses:
            print(line(name), flush=True)


def line(name: str) -> str:
    """Plant a weakness, improve a network, and return what came of it."""
    if not Path(f"photos-{name}").is_dir():
        planted(Path(f"photos-{name}"), name if name in WEAKNESSES else "", COUNTS, side=32)
    Path(f"{name}.yaml").write_text(CONFIG.format(name=name))
    with contextlib.redirect_stderr(io.StringIO()):
        pack(f"photos-{name}", Path(f"shards-{name}"), PackOptions(processes=1))
        found = improve(load_config(f"{name}.yaml"), 1, 2, Console(quiet=True))
    baseline = RunDir(Path("runs") / found.baseline)
    advice = advice_of(baseline, baseline.config(), "val")
    assert advice is not None
    words = [f"{name:12}"]
    words += [
        f"{one.family}: drop {shown(one.drop)}, undone {shown(one.gain)}, {100 * one.plausibility:.0f} %;"
        for one in advice.lines
    ] or ["no advice"]
    expected = WEAKNESSES.get(name, "")
    right = (advice.lines[0].family if advice.lines else "") == expected
    words.append("RIGHT" if right else f"WRONG, expected {expected or 'no advice'}")
    words += [
        f"| round {one.number}: val {shown(one.validation[0]['difference'])} {'kept' if one.kept else 'not kept'}"
        for one in found.rounds
        if one.run
    ]
    words += [
        f"| test {shown(pairs[0]['a'])} -> {shown(pairs[0]['b'])}: {shown(pairs[0]['difference'])}"
        for pairs in found.test.values()
    ]
    return " ".join(words)


def shown(figures: Numbers | None) -> str:
    """Return points with their interval."""
    if figures is None:
        return "-"
    return f"{100 * figures['value']:.1f} [{100 * figures['low']:.1f}, {100 * figures['high']:.1f}]"


if __name__ == "__main__":
    main()
