"""The evaluation pass: equal bits on any number of ranks, one decode for all models, and reuse of finished chunks."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from choral.config import Config
from choral.config.files import load_config
from choral.core.errors import DataError
from choral.core.process_group import Runtime
from choral.data.loading import sample_pipeline as sample
from choral.data.loading.decode import decode
from choral.data.packing.options import PackOptions
from choral.data.packing.pack import pack
from choral.data.shards.index import Dataset, Index
from choral.inference import chunks as chunks_module
from choral.inference import evaluation_pass as evaluate_module
from choral.inference.chunks import Chunks, ChunkWriter, find_finished_chunks, rank_share
from choral.inference.evaluation_pass import evaluate
from choral.inference.ledger import Ledger, LedgerMeta
from choral.models.checkpoint_tensors import OptimizerState, save_tensors
from choral.runs.checkpoints import MODEL_FILE
from choral.runs.run_dir import RunDir, read_json
from made_members import made_members
from thread_ranks import evaluate_on_ranks

MEMBERS = "ensemble.members=[{name: a}, {name: b}, {name: c, set: {data.image_size: 40, data.eval_crop: center}}]"
SETTINGS = ["data.cache_gib=0", "evaluate.batch_size=3", "evaluate.splits=[val]", "evaluate.checkpoint=last", MEMBERS]


@pytest.fixture
def config(config_file: Path) -> Config:
    return load_config(config_file, [*SETTINGS, "evaluate.keep_views=true", "evaluate.views=[hflip, rot90]"])


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes in bytes of the decoded images."""
    seen: list[int] = []

    def counted(data: bytes, **options: object) -> object:
        seen.append(len(data))
        return decode(data, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(sample, "decode", counted)
    return seen


def ledger_of(folder: RunDir, split: str = "val") -> Path:
    return folder.predictions / f"{split}.parquet"


def parts_in(folder: RunDir) -> list[Path]:
    return sorted(folder.predictions.glob(".val.parts/*/part-*"))


@pytest.mark.parametrize("samples_per_shard", [13, 7, 5, 4, 3])
def test_predictions_do_not_depend_on_ranks_or_shards(
    photos: Path, config: Config, tmp_path: Path, decoded: list[int], samples_per_shard: int
) -> None:
    """13 samples in one to five shards, three members with two sizes and two normalisations, and a rank without a chunk."""
    packed = pack(str(photos), tmp_path / "packed", PackOptions(samples_per_shard=samples_per_shard, processes=1))
    assert len(packed.splits["val"].shards) == -(-13 // samples_per_shard)
    size = 7 if samples_per_shard == 13 else 3  # two chunks for three ranks
    data = config.data.replace(shards=str(packed.folder))
    config = config.replace(data=data, evaluate=config.evaluate.replace(batch_size=size))
    folder = made_members(config, tmp_path / "run")
    found = []
    for ranks in (1, 2, 3):
        decoded.clear()
        assert evaluate_on_ranks(config, folder, ranks) == []
        assert len(decoded) == 13, "an image was decoded more than once, or not at all"
        found.append(ledger_of(folder).read_bytes())
        assert [path.name for path in folder.predictions.iterdir()] == ["val.parquet"]
    assert found[0] == found[1] == found[2]
    ledger = Ledger.open(ledger_of(folder))
    assert len(ledger) == 13 and ledger.views == ("hflip", "rot90", "tta") and ledger.meta.skipped == 0


def test_one_pass_equals_separate_passes(config: Config, tmp_path: Path, run: Runtime) -> None:
    folder = made_members(config, tmp_path / "run")
    evaluate(config, folder, run)
    together = Ledger.open(ledger_of(folder))
    for name in ("a", "b", "c"):
        for view in config.evaluate.views:
            alone = folder.member(name).config().replace(evaluate=config.evaluate.replace(views=(view,)))
            evaluate(alone, folder.member(name), run, force=True)
            ledger = Ledger.open(ledger_of(folder.member(name)))
            difference = ledger.predictions("model", view) - together.predictions(name, view)
            assert np.abs(difference).max() <= 1e-6


class Stop:
    """Asks rank 0 to stop after a number of its chunks, and never the others."""

    def __init__(self, after: int) -> None:
        self.left = after

    def __call__(self, rank: int) -> bool:
        self.left -= rank == 0
        return self.left <= 0 and rank == 0


def test_finished_chunks_are_reused_by_any_number_of_ranks(
    config: Config, tmp_path: Path, decoded: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    config = config.replace(evaluate=config.evaluate.replace(batch_size=2))
    folder = made_members(config, tmp_path / "run")
    evaluate_on_ranks(config, folder, 1)
    whole = ledger_of(folder).read_bytes()
    ledger_of(folder).unlink()
    assert len(evaluate_on_ranks(config, folder, 1, Stop(after=2))) == 1
    assert not ledger_of(folder).exists()
    assert [path.name for path in parts_in(folder)] == ["part-000000000-000000002.arrow"]
    with caplog.at_level(logging.INFO, "choral"):
        assert len(evaluate_on_ranks(config, folder, 2, Stop(after=1))) == 1
    assert "val: continuing: 4 of 13 samples are done" in caplog.text
    decoded.clear()
    assert evaluate_on_ranks(config, folder, 3) == []
    assert len(decoded) == 2  # rank 0 of two had two chunks to do, and was stopped after the first
    assert ledger_of(folder).read_bytes() == whole


def test_chunks_of_other_evaluations_never_mix(config: Config, tmp_path: Path, decoded: list[int]) -> None:
    folder = made_members(config, tmp_path / "run")
    changes: list[dict[str, Any]] = [{"views": ("rot90", "hflip")}, {"batch_size": 4}, {"average": "logits"}, {}]
    kept = set()
    for changed in changes:
        other = config.replace(evaluate=config.evaluate.replace(**changed))
        decoded.clear()
        assert len(evaluate_on_ranks(other, folder, 1, Stop(after=1))) == 1
        assert len(decoded) >= 3 and len(parts_in(folder)) == 1
        kept |= set(parts_in(folder))
    assert len(kept) == 4
    checkpoint = folder.member("a").checkpoints / "step-00000001"  # other weights
    network = load_file(checkpoint / MODEL_FILE)
    meta = read_json(checkpoint / "state.json") or {}
    save_tensors(
        checkpoint.parent,
        1,
        {MODEL_FILE: {key: 2 * value for key, value in network.items()}},
        OptimizerState(),
        meta,
        1,
    )
    decoded.clear()
    assert evaluate_on_ranks(config, folder, 1) == [] and len(decoded) == 13


def test_damaged_parts_are_predicted_again(
    config: Config, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunks_module, "_MIN_WRITE_INTERVAL_S", 0.0)
    monkeypatch.setattr(chunks_module, "_WRITE_INTERVAL_SHARE", 0.0)
    folder = made_members(config, tmp_path / "run")
    evaluate_on_ranks(config, folder, 1)
    whole = ledger_of(folder).read_bytes()
    assert len(evaluate_on_ranks(config, folder, 1, Stop(after=4))) == 1
    first, second, third, _ = parts_in(folder)
    first.write_bytes(first.read_bytes()[:-40])
    second.write_bytes(third.read_bytes())  # chunk 2 twice
    (first.parent / ".part-000000004-000000005.arrow.1.tmp").write_text("of a process that was killed")
    evaluate_on_ranks(config, folder, 1)
    assert caplog.text.count("predicting again") == 2
    assert ledger_of(folder).read_bytes() == whole


def test_parts_that_cannot_be_merged_are_deleted(
    config: Config, tmp_path: Path, run: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = made_members(config, tmp_path / "run")

    def fails(*arguments: object) -> None:
        raise DataError("no probability distribution")

    with monkeypatch.context() as patch, pytest.raises(DataError, match="no probability"):
        patch.setattr(evaluate_module, "merge_parts", fails)
        evaluate(config, folder, run)
    assert parts_in(folder) == []

    def full(*arguments: object) -> None:
        raise DataError("cannot be written") from OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(DataError, match="cannot be written"):
        patch.setattr(evaluate_module, "merge_parts", full)
        evaluate(config, folder, run)
    assert len(parts_in(folder)) == 1
    evaluate(config, folder, run)
    assert len(Ledger.open(ledger_of(folder))) == 13


def spoil(shards: Path, split: str, rows: list[int]) -> None:
    """Make the images of some rows of packed data unreadable."""
    index = Index.open(Dataset.open(shards), split)
    for row in rows:
        path = index.dataset.folder / index.dataset.shards[int(index.column("shard")[row])].path
        with path.open("r+b") as file:
            file.seek(int(index.column("offset")[row]))
            file.write(b"no image")


def test_skipped_samples_are_counted_over_ranks_and_starts(photos: Path, config: Config, tmp_path: Path) -> None:
    """Each rank and each start knows only the samples that it skipped itself; together they may be too many."""
    packed = pack(str(photos), tmp_path / "packed", PackOptions(samples_per_shard=5, processes=1))
    spoil(packed.folder, "val", [1, 11])
    data = config.data.replace(shards=str(packed.folder), on_bad_sample="skip", max_bad_fraction=0.1)
    config = config.replace(data=data)
    folder = made_members(config, tmp_path / "run")
    with pytest.raises(AssertionError, match=r"2 of 13 samples cannot be read"):
        evaluate_on_ranks(config, folder, 2)  # one each
    assert not ledger_of(folder).exists() and parts_in(folder)
    more = config.replace(data=data.replace(max_bad_fraction=0.2))
    assert len(evaluate_on_ranks(more, folder, 1, Stop(after=1))) == 0, "nothing was left to ask about"
    assert Ledger.open(ledger_of(folder)).meta.skipped == 2
    assert len(evaluate_on_ranks(more, folder, 1, Stop(after=1))) == 1
    failing = config.replace(data=data.replace(on_bad_sample="fail"))
    with pytest.raises(AssertionError, match="to continue without such samples"):
        evaluate_on_ranks(failing, folder, 1)


def test_ranks_get_consecutive_chunks() -> None:
    shares = [rank_share(np.array([0, 3, 4, 7, 8]), rank, 3) for rank in range(3)]
    assert shares == [[0], [3, 4], [7, 8]]
    assert [rank_share(np.array([2]), rank, 3) for rank in range(3)] == [[], [], [2]]
    rows = np.array([5, 3, 1, 0])
    chunks = Chunks(rows, 3)
    assert len(chunks) == 2 and chunks.rows_in(1).tolist() == [0]
    assert len(Chunks(rows[:0], 3)) == 0


def test_gaps_start_a_new_file(tmp_path: Path) -> None:
    from choral.inference.ledger import build_ledger_table

    meta = LedgerMeta(("x", "y"), ("a",), ("identity",), "val", "d")
    folder = Chunks(np.arange(5), 1).parts_dir(tmp_path, meta, ())
    names = "vwxyz"

    def table(rows: object, columns: object) -> object:
        return build_ledger_table(meta, [names[row] for row in rows], np.zeros(len(rows), int), columns)  # type: ignore[attr-defined, arg-type]

    writer = ChunkWriter(folder, table)  # type: ignore[arg-type]
    for chunk in (0, 1, 4):
        writer.add(chunk, np.array([chunk]), {("a", "identity"): np.full((1, 2), 0.5, np.float32)}, [])
    writer.flush()
    writer.flush()
    assert [path.name for path in sorted(folder.iterdir())] == [
        "part-000000000-000000002.arrow",
        "part-000000004-000000005.arrow",
    ]
    assert find_finished_chunks(folder, 5, meta).tolist() == [True, True, False, False, True]


@pytest.fixture(scope="module")
def interrupted(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The directory after tests/support/interrupted.py: an evaluation that was killed, stopped twice, and finished."""
    place = tmp_path_factory.mktemp("interrupted")
    config = place / "toy.yaml"
    config.write_text(
        f"data: {{shards: '{shards}', image_size: 32, eval_crop: resized}}\n"
        "model: {name: test_resnet, weights: none}\n"
        "tracking: {wandb: 'off'}\n"
        "evaluate: {views: [d4], batch_size: 1, splits: [val], checkpoint: last}\n"
    )
    script = Path(__file__).parents[1] / "support" / "interrupted.py"
    done = subprocess.run([sys.executable, str(script), str(config), str(place)], text=True, timeout=200, check=False)
    assert done.returncode == 0
    yield place


def test_evaluation_resumes_after_signals(interrupted: Path) -> None:
    outcomes = json.loads((interrupted / "outcomes.json").read_text())
    assert outcomes["whole"] == 0
    assert outcomes["killed"] == -9 and outcomes["after kill"] >= 1, outcomes
    assert outcomes["terminated"] == 75 and outcomes["after terminated"] > outcomes["after kill"], outcomes
    assert outcomes["usr1"] == 75 and outcomes["after usr1"] > outcomes["after terminated"], outcomes
    assert outcomes["finished"] == 0 and outcomes["predicted at last"] == 13 - outcomes["after usr1"], outcomes
    assert outcomes["same bytes"]
