"""Planted weaknesses: is the right family advised, does `improve` fix it, and is nothing advised where nothing is planted?

    python tests/bench/bench_planted.py [rotation dark small faded upside-down none] [--out FOLDER]

The images are letters. Training images are upright, bright and of one size; half of the validation and test images have the
weakness. A small network is trained from scratch in this process: some minutes per weakness on one core.
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

from choral.analysis.advice import read_advice
from choral.cli.workflow.improvement import improve
from choral.config.files import load_config
from choral.data.packing.options import PackOptions
from choral.data.packing.pack import pack
from choral.ensembles.score_rows import IntervalDict
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
    """Print one line per weakness."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("weaknesses", nargs="*", default=[*WEAKNESSES, "none"])
    parser.add_argument("--out", type=Path, help="keep data and runs in this directory; run again to continue")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, pytest.MonkeyPatch.context() as patch:
        place = options.out or Path(scratch)
        place.mkdir(parents=True, exist_ok=True)
        os.chdir(place)
        launch_in_process(patch)
        for name in options.weaknesses:
            print(run_weakness(name), flush=True)


def run_weakness(name: str) -> str:
    """Plant a weakness, improve a network, and return the result as a line."""
    if not Path(f"photos-{name}").is_dir():
        planted(Path(f"photos-{name}"), name if name in WEAKNESSES else "", COUNTS, side=32)
    Path(f"{name}.yaml").write_text(CONFIG.format(name=name))
    with contextlib.redirect_stderr(io.StringIO()):
        pack(f"photos-{name}", Path(f"shards-{name}"), PackOptions(processes=1))
        result = improve(load_config(f"{name}.yaml"), 1, 2, Console(quiet=True))
    baseline = RunDir(Path("runs") / result.baseline)
    advice = read_advice(baseline, baseline.config(), "val")
    assert advice is not None
    parts = [f"{name:12}"]
    parts += [
        f"{one.family}: drop {format_points(one.drop)}, undone {format_points(one.gain)}, {100 * one.plausibility:.0f} %;"
        for one in advice.lines
    ] or ["no advice"]
    expected = WEAKNESSES.get(name, "")
    is_expected = (advice.lines[0].family if advice.lines else "") == expected
    parts.append("RIGHT" if is_expected else f"WRONG, expected {expected or 'no advice'}")
    parts += [
        f"| round {one.number}: val {format_points(one.validation[0]['difference'])} {'kept' if one.kept else 'not kept'}"
        for one in result.rounds
        if one.run
    ]
    parts += [
        f"| test {format_points(pairs[0]['a'])} -> {format_points(pairs[0]['b'])}: {format_points(pairs[0]['difference'])}"
        for pairs in result.test.values()
    ]
    return " ".join(parts)


def format_points(interval: IntervalDict | None) -> str:
    """Return percentage points with their interval."""
    if interval is None:
        return "-"
    return f"{100 * interval['value']:.1f} [{100 * interval['low']:.1f}, {100 * interval['high']:.1f}]"


if __name__ == "__main__":
    main()
