"""Run directories with synthetic ledgers, for tests of what is computed from predictions; no model is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from choral.config import Config
from choral.config.files import load_config
from choral.inference.ledger import Ledger, LedgerMeta, build_ledger_table, merge_parts, write_part
from choral.runs.run_dir import RunDir, write_json

CLASSES = ("x", "y", "z")
MEMBERS = ("a", "b", "c")
VIEWS = ("identity", "tta")
FOLDS = ["ensemble.folds=3", "ensemble.members=[{name: net}, {name: other}]"]
FOLDED = tuple(f"{name}-fold{number}" for name in ("net", "other") for number in (1, 2, 3))
Columns = dict[tuple[str, str], NDArray[np.float32]]


def predictions(
    count: int, members: Sequence[str] = MEMBERS, seed: int = 0, classes: int = 3, views: Sequence[str] = VIEWS
) -> tuple[NDArray[np.int64], Columns]:
    """Return labels, and predictions of members of different quality that share some of their errors."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count)
    shared, columns = rng.normal(size=(count, classes)), {}
    for number, member in enumerate(members):
        for view in views:
            noise = rng.normal(size=(count, classes)) * (0.5 + 0.4 * number)
            logits = shared + noise
            logits[np.arange(count), labels] += 1.5
            values = np.exp(2 * logits)
            columns[member, view] = (values / values.sum(1, keepdims=True)).astype(np.float32)
    return labels, columns


def numbers(labels: NDArray[np.float32], task: str, members: Sequence[str] = MEMBERS, seed: int = 1) -> Columns:
    """Return multilabel or regression predictions, noisier from member to member."""
    rng = np.random.default_rng(seed)
    columns = {}
    for number, member in enumerate(members):
        values = labels + rng.normal(0, 0.4 + 0.3 * number, labels.shape)
        columns[member, "identity"] = (1 / (1 + np.exp(2 - 4 * values)) if task == "multilabel" else values).astype(
            "f4"
        )
    return columns


def write_ledger(
    path: Path,
    labels: NDArray[Any],
    columns: Columns,
    classes: Sequence[str] = CLASSES,
    task: str = "multiclass",
    keys: Sequence[str] | None = None,
    evaluation: str = "e",
    tta_views: Sequence[str] = ("identity", "hflip"),
    dataset: str = "d",
) -> Ledger:
    """Write a ledger with these columns; its split is the file's name."""
    members = tuple(dict.fromkeys(member for member, _ in columns))
    views = tuple(dict.fromkeys(view for _, view in columns))
    tta = tuple(tta_views) if "tta" in views else ()
    meta = LedgerMeta(tuple(classes), members, views, path.stem, dataset, evaluation, tta, task)
    keys = keys or [f"{path.stem}{number:05d}" for number in range(len(labels))]
    write_part(path.parent / "parts", 0, 1, build_ledger_table(meta, keys, labels, columns))
    merge_parts(path.parent / "parts", 1, keys, path, meta)
    return Ledger.open(path)


def made_run(
    folder: Path, ledgers: Mapping[str, tuple[NDArray[Any], Columns]], overrides: Sequence[str] = (), **options: Any
) -> tuple[RunDir, Config]:
    """Make a run directory with a config and a ledger of each split."""
    folder.parent.mkdir(exist_ok=True)
    (folder.parent / "made.yaml").write_text("data: {shards: nowhere}\n")
    members = "ensemble.members=[{name: a}, {name: b}, {name: c}]"
    config = load_config(folder.parent / "made.yaml", list(overrides) or [members])
    run = RunDir(folder)
    run.store_config(config)
    for split, (labels, columns) in ledgers.items():
        write_ledger(run.predictions / f"{split}.parquet", labels, columns, **options)
    return run, config


def made_rounds(run: RunDir, alphas: Mapping[str, float]) -> None:
    """Write the rounds.json of a boosting chain."""
    rounds = [{"member": name, "error": 0.2, "alpha": alpha} for name, alpha in alphas.items()]
    write_json(run.path / "boosting" / "rounds.json", {"rounds": rounds, "ended": None, "dataset": "d"})
