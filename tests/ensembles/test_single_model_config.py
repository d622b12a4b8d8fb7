"""The config of a single model in place of an ensemble."""

from __future__ import annotations

from pathlib import Path

import pytest

from choral.config import resolve_members
from choral.config.files import load_config
from choral.ensembles.member_jobs import single_model_config


@pytest.mark.parametrize(
    ("ensemble", "seed", "rate"),
    [
        ("{}", 3, 1e-3),
        ("{members: [{name: a, set: {seed: 7, train.lr: 2e-3}}, {name: b}]}", 7, 2e-3),
        ("{folds: 3}", 3, 1e-3),
        ("{bagging: 2, members: [{name: a, set: {train.lr: 2e-3}}]}", 3, 2e-3),
        ("{snapshots: 3}", 3, 1e-3),
        ("{boosting: 3}", 3, 1e-3),
    ],
)
def test_the_first_member_on_the_whole_training_split(tmp_path: Path, ensemble: str, seed: int, rate: float) -> None:
    path = tmp_path / "cells.yaml"
    path.write_text(f"data: {{shards: x}}\nseed: 3\nensemble: {ensemble}\n", encoding="utf-8")
    single = single_model_config(load_config(path), "cells-baseline")
    assert (single.run, single.seed, single.train.lr) == ("cells-baseline", seed, rate)
    assert not resolve_members(single)
    assert single.data.resample.kind == "none"
    assert single.train.cycles == 1
