"""All ranks together compute each feature once, and the fitted head does not depend on the number of ranks."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from choral.runs.checkpoints import MODEL_FILE, find_checkpoint

HERE = Path(__file__).parent


def read_results(
    folder: Path,
) -> tuple[list[list[list[int]]], dict[tuple[str, int], np.ndarray], dict[str, torch.Tensor]]:
    """Return the rows of the parts that each rank wrote, the features by split and pass, and the weights of the network."""
    ranks = [json.loads((folder / f"rows-{rank}.json").read_text()) for rank in range(int(folder.name))]
    found = {}
    for meta in (folder / "packed" / ".features").glob("*/meta.json"):
        description = json.loads(meta.read_text())["description"]
        number = description["view"].get("pass", 0)
        found[description["split"], number] = np.load(meta.parent / "features.npy", allow_pickle=False)
    return ranks, found, load_file(find_checkpoint(folder / "checkpoints", "last") / MODEL_FILE)


def test_one_two_and_three_ranks_compute_the_same_features_and_fit_the_same_head(
    config_file: Path, shards: Path, tmp_path: Path
) -> None:
    folders = [tmp_path / str(processes) for processes in (1, 2, 3)]
    for folder in folders:
        shutil.copytree(shards, folder / "packed")
        text = config_file.read_text().replace(str(shards), str(folder / "packed"))
        finetune = "finetune: {strategy: linear, feature_passes: 2, regularization: 0.05}\n"
        (folder / "toy.yaml").write_text(text + finetune)
    command = [sys.executable, str(HERE / "fit_head.py"), *map(str, folders)]
    subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True, timeout=200)
    alone, expected, network = read_results(folders[0])
    assert set(expected) == {("train", 0), ("train", 1), ("val", 0)}
    for folder in folders[1:]:
        ranks, found, other = read_results(folder)
        assert sorted(part for rank in ranks for part in rank) == sorted(alone[0])
        assert all(ranks), "every rank has work"
        for key, values in expected.items():
            np.testing.assert_allclose(found[key], values, atol=1e-6, rtol=0)
        for name, tensor in network.items():
            torch.testing.assert_close(other[name], tensor, atol=1e-4, rtol=1e-4)
    rows = [row for part in alone[0] for row in part]
    assert sorted(rows) == sorted([*range(37), *range(37), *range(13)])  # two passes, and validation
    waiting = (
        folders[1] / "waiting"
    )  # both ranks see the features of the other process in the same turn and compute none
    assert all(len(json.loads((waiting / f"waits-{rank}.json").read_text())) == 3 for rank in range(2))
    for name, tensor in load_file(find_checkpoint(waiting / "checkpoints", "last") / MODEL_FILE).items():
        assert torch.equal(tensor, read_results(folders[1])[2][name])
