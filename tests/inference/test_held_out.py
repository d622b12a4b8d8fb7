"""Out-of-fold and out-of-bag predictions: training samples predicted by members not trained on them."""

from __future__ import annotations

import json
import logging
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from choral.cli import main
from choral.config import Config, held_out_groups, resolve_members
from choral.config.files import load_config
from choral.core.process_group import Runtime
from choral.data.loading.host_loader import BatchRequest
from choral.data.loading.input_pipeline import InputPipeline
from choral.data.loading.input_spec import Normalization
from choral.data.loading.rank_place import RankPlace
from choral.data.loading.resampling import select_rows
from choral.data.loading.split import Split, open_dataset, open_split
from choral.data.packing.options import PackOptions
from choral.data.packing.pack import pack
from choral.data.shards.index import Dataset
from choral.ensembles.member_jobs import member_config
from choral.inference.evaluation_pass import evaluate
from choral.inference.evaluation_plan import HELD_OUT, plan_evaluation
from choral.inference.ledger import Ledger
from choral.inference.predict_chunk import InferenceOptions, predict_batch
from choral.inference.run_models import find_trained_models
from choral.inference.trained_model import TrainedModel
from choral.inference.views import expand_views
from choral.runs.run_dir import RunDir
from choral.training.loop import train
from thread_ranks import evaluate_on_ranks
from toy_data import Choral

CPU = torch.device("cpu")
PLACE = RankPlace(0, 1, CPU)
FOLDS = "ensemble.folds=2"
ONE_STEP = ["train.steps=1", "evaluate.views=[identity, hflip]", "evaluate.splits=[val]"]


def trained(config: Config, path: Path, run: Runtime, without: tuple[str, ...] = ()) -> RunDir:
    """Train the members, except `without`, one after the other in this process, and return the run directory."""
    path.mkdir()
    folder = RunDir(path)
    folder.store_config(config)
    for member in resolve_members(config):
        if member.name not in without:
            own = member_config(config, member.name)
            place = folder.member(member.name)
            place.path.mkdir(parents=True)
            place.store_config(own)
            train(own, place, run)
    return folder


def held_out_of(folder: RunDir) -> Ledger:
    return Ledger.open(folder.predictions / f"{HELD_OUT}.parquet")


def unseen_by(model: TrainedModel, split: Split) -> NDArray[np.int64]:
    selection = select_rows(model.config.data.resample, split.index)
    assert selection is not None
    return selection.held_out


def by_hand(config: Config, folder: RunDir, split: Split, tmp_path: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """Return group to view to key to the mean prediction of the members that were not trained on the sample."""
    models, _ = find_trained_models(folder, config)
    views = expand_views(config.evaluate.views)
    result: dict[str, dict[str, dict[str, Any]]] = {}
    for group, members in held_out_groups(config).items():
        answers: dict[str, dict[str, list[NDArray[np.float32]]]] = {"identity": {}, "hflip": {}, "tta": {}}
        for model in (model for model in models if model.member in members):
            inputs = config.replace(data=model.config.data)
            orders = [BatchRequest(np.array([row]), 0, 0) for row in unseen_by(model, split)]
            network = model.load(CPU)
            normalization = Normalization(model.mean, model.std)
            pipeline = InputPipeline(inputs, split, PLACE, normalization, tmp_path / "bad")
            with pipeline.unaugmented_batches(orders) as batches:
                for batch in batches:
                    key = split.index.keys(batch.rows)[0]
                    options = InferenceOptions(views, (*views, "tta"), nullcontext)
                    (found,) = predict_batch([(network, model.outputs)], model.input_spec, batch.images, options)
                    for view, values in found.items():
                        answers[view].setdefault(key, []).append(values.numpy()[0])
        result[group] = {
            view: {key: np.mean(all_, axis=0) for key, all_ in own.items()} for view, own in answers.items()
        }
    return result


def assert_by_hand(config: Config, folder: RunDir, tmp_path: Path) -> Ledger:
    """Compare the ledger with predictions of each member, one image at a time, and return it."""
    split = open_split(config, open_dataset(config.data), "train", PLACE)
    ledger = held_out_of(folder)
    expected = by_hand(config, folder, split, tmp_path)
    assert ledger.members == tuple(expected) and ledger.views == ("identity", "hflip", "tta")
    judged = set.intersection(*(set(views["identity"]) for views in expected.values()))
    assert ledger.keys == sorted(judged) and ledger.meta.skipped == len(split) - len(judged)
    for group, views in expected.items():
        for view, answers in views.items():
            wanted = np.stack([answers[key] for key in ledger.keys])
            assert np.abs(ledger.predictions(group, view) - wanted).max() <= 2e-6, (group, view)
    rows = {key: row for row, key in enumerate(split.index.keys(np.arange(len(split))))}
    truth = split.targets.take(np.array([rows[key] for key in ledger.keys]))
    assert np.array_equal(ledger.labels, truth)
    return ledger


def evaluate_and_open(config: Config, folder: RunDir, ranks: int) -> Ledger:
    """Evaluate on several ranks, each a thread, and open the held-out ledger."""
    evaluate_on_ranks(config, folder, ranks)
    return held_out_of(folder)


def test_each_sample_is_predicted_by_the_fold_that_left_it_out(config_file: Path, tmp_path: Path, run: Runtime) -> None:
    """Two resolutions, so each image is prepared twice; equal on any number of ranks; the second call has nothing to do."""
    config = load_config(config_file, [*ONE_STEP, FOLDS, "ensemble.resolutions=[32, 40]"])
    folder = trained(config, tmp_path / "folds", run)
    evaluate(config, folder, run)
    ledger = assert_by_hand(config, folder, tmp_path)
    assert ledger.members == ("32", "40") and len(ledger) == 37 and ledger.meta.split == HELD_OUT
    assert Ledger.open(folder.predictions / "val.parquet").members == tuple(
        f"{size}-fold{number}" for size in (32, 40) for number in (1, 2)
    )
    for ranks in (2, 3):
        other = evaluate_and_open(config, folder, ranks)
        assert other.keys == ledger.keys and np.array_equal(other.labels, ledger.labels)
        for group in ledger.members:
            assert np.array_equal(other.predictions(group, "tta"), ledger.predictions(group, "tta"))
    dataset = Dataset.open(config.data.shards)
    assert plan_evaluation(config, folder, dataset).missing() == []
    path = folder.member("40-fold2").path / "config.yaml"  # trained on other samples: the ledger is out of date
    path.write_text(path.read_text().replace("number: 1", "number: 0"))
    assert plan_evaluation(config, folder, dataset).missing() == [HELD_OUT]
    off = config.replace(evaluate=config.evaluate.replace(held_out=False))
    assert plan_evaluation(off, folder, dataset).missing() == []


def test_out_of_bag_samples_are_predicted_by_models_not_trained_on_them(
    config_file: Path, tmp_path: Path, run: Runtime, caplog: pytest.LogCaptureFixture
) -> None:
    """Samples in all bags of a seed have no prediction; one image cannot be read; one member is not trained."""
    packed = tmp_path / "packed"
    source = Path(load_config(config_file).data.shards)
    shutil.copytree(source, packed, ignore=shutil.ignore_patterns(".decoded", ".features"))
    overrides = ["ensemble.bagging=3", "ensemble.seeds=2", f"data.shards={packed}", "data.cache_gib=0"]
    skip = ["data.on_bad_sample=skip", "data.max_bad_fraction=0.1"]
    config = load_config(config_file, [*ONE_STEP, *overrides, *skip])
    folder = trained(config, tmp_path / "bags", run, without=("seed2-bag2",))
    with caplog.at_level(logging.WARNING, "choral"):
        evaluate(config, folder, run)
    ledger = assert_by_hand(config, folder, tmp_path)
    assert ledger.members == ("seed1", "seed2") and 0 < ledger.meta.skipped < 37
    left_out = f"held-out: {ledger.meta.skipped} of 37 samples are left out: all trained members, or all of a group"
    assert left_out in caplog.text and "not trained: seed2-bag2" in caplog.text
    split = open_split(config, open_dataset(config.data), "train", PLACE)
    keys = split.index.keys(np.arange(37))
    record = split.index.row(keys.index(ledger.keys[0]))
    with split.index.dataset.shard_path(record.shard).open("r+b") as file:
        file.seek(record.offset)
        file.write(np.zeros(record.length, np.uint8).tobytes())
    before = (ledger.keys, ledger.predictions("seed2", "tta"), ledger.meta.skipped)
    evaluate(config, folder, run, force=True)
    again = held_out_of(folder)
    assert again.keys == before[0][1:] and again.meta.skipped == before[2] + 1
    assert np.abs(again.predictions("seed2", "tta") - before[1][1:]).max() <= 1e-6


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """45 random images, each with up to two labels and a number."""
    root = tmp_path_factory.mktemp("held-out")
    lines = ["image,label,number"]
    for number in range(45):
        pixels = np.random.default_rng(number).integers(0, 256, (20, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"{number}.png")
        lines.append(f"{number}.png,{('a', 'b', 'a;b')[number % 3]},{number / 7}")
    (root / "list.csv").write_text("\n".join(lines) + "\n")
    options = PackOptions(processes=1, task="multilabel", val=0.2, test=0.0)
    return pack(str(root / "list.csv"), root / "packed", options).folder


@pytest.mark.parametrize("task", ["multilabel", "regression"])
def test_multilabel_and_regression(config_file: Path, tmp_path: Path, run: Runtime, shapes: Path, task: str) -> None:
    targets = ["data.targets=[number]"] if task == "regression" else []
    overrides = [f"task={task}", f"data.shards={shapes}", "ensemble.folds=2", *targets]
    config = load_config(config_file, [*ONE_STEP, *overrides])
    folder = trained(config, tmp_path / "run", run)
    evaluate(config, folder, run)
    ledger = assert_by_hand(config, folder, tmp_path)
    assert ledger.meta.task == task and ledger.members == ("folds",) and len(ledger) == 36


def test_all_snapshots_of_a_member_predict(config_file: Path, tmp_path: Path, run: Runtime) -> None:
    overrides = ["ensemble.folds=2", "ensemble.snapshots=2", "train.steps=2", "train.warmup_epochs=0"]
    config = load_config(config_file, [*ONE_STEP, *overrides])
    folder = trained(config, tmp_path / "run", run)
    evaluate(config, folder, run)
    models, _ = find_trained_models(folder, config)
    assert [model.name for model in models] == ["fold1.1", "fold1.2", "fold2.1", "fold2.2"]
    assert_by_hand(config, folder, tmp_path)


def test_no_held_out_ledger_without_folds(config_file: Path, tmp_path: Path, run: Runtime) -> None:
    config = load_config(config_file, [*ONE_STEP, "ensemble.seeds=1"])
    folder = trained(config, tmp_path / "run", run)
    evaluate(config, folder, run)
    assert sorted(path.name for path in folder.predictions.iterdir()) == ["val.parquet"]


def test_folds_from_the_command_line(
    config_file: Path,
    choral: Choral,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    result = choral("run", config_file, "ensemble.folds=2", "train.steps=4", "evaluate.views=[identity]")
    assert result.returncode == 0, result.stderr
    ledger = held_out_of(RunDir(tmp_path / "runs" / "toy"))
    assert ledger.members == ("folds",) and len(ledger) == 37 and ledger.views == ("identity",)
    monkeypatch.chdir(tmp_path)
    assert main(["scores", "--split", HELD_OUT, "--json"]) == 0  # `choral run` has recorded it
    (table,) = json.loads(capsys.readouterr().out)["tables"]
    assert table["samples"] == 37 and table["rows"][0]["run"] == "toy"
    assert main(["evaluate", "toy"]) == 0 and "already evaluated" in capsys.readouterr().err
    assert main(["score", "toy", "--split", HELD_OUT, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    right = (ledger.predictions("folds").argmax(axis=1) == ledger.labels).mean()
    assert rows[0]["name"] == "member/folds" and rows[0]["value"] == pytest.approx(right) and rows[0]["n"] == 37
