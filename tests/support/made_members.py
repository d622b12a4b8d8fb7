"""Trained members with random weights: the files that training writes, without any training step."""

from __future__ import annotations

from pathlib import Path

from choral.config import Config, resolve_members
from choral.data.loading.targets import Targets
from choral.data.shards.index import Dataset, Index
from choral.ensembles.member_jobs import member_config
from choral.models.build import build_model
from choral.models.checkpoint_tensors import OptimizerState, save_tensors
from choral.models.output_spec import OutputSpec
from choral.runs.checkpoints import MODEL_FILE
from choral.runs.run_dir import RunDir, write_json


def made_members(config: Config, path: Path) -> RunDir:
    """Make a run whose members have random weights, which depend on their seeds; two different means alternate."""
    folder = RunDir(path)
    folder.store_config(config)
    members = {member.name: folder.member(member.name) for member in resolve_members(config)} or {"model": folder}
    dataset = Dataset.open(config.data.shards)
    targets = Targets.open(config, Index.open(dataset, config.data.train_split))
    numbers = len(targets.names) if targets.task == "regression" else 0
    for number, (name, member) in enumerate(members.items()):
        own = member_config(config, name) if resolve_members(config) else config
        member.store_config(own)
        network = build_model(own.model, len(targets.names), own.data.image_size, own.seed + number)
        half = 0.5 + 0.01 * (number % 2)
        meta = {
            **OutputSpec(targets.task, targets.names, (0.0,) * numbers, (1.0,) * numbers).meta(),
            "mean": (half,) * 3,
            "std": (0.25,) * 3,
            "dataset": dataset.fingerprint,
            "state": {"step": 1},
        }
        save_tensors(member.checkpoints, 1, {MODEL_FILE: network.state_dict()}, OptimizerState(), meta, 1)
        write_json(member.path / "result.json", {"steps": 1})
    return folder
