"""One network in place of an ensemble."""

from __future__ import annotations

from pathlib import Path

import pytest

from choral.config import members_of
from choral.config.files import load_config
from choral.ensembles.member_jobs import solo_config


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
    solo = solo_config(load_config(path), "cells-baseline")
    assert (solo.run, solo.seed, solo.train.lr) == ("cells-baseline", seed, rate)
    assert not members_of(solo)
    assert solo.data.resample.kind == "none"
    assert solo.train.cycles == 1
