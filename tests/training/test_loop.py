"""Training steps in this process, compared with a few lines of plain PyTorch."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from choral.config.files import load_config
from choral.core.errors import ChoralError, ConfigError, DataError, Stopped
from choral.core.process_group import Runtime
from choral.data.loading.device_loader import Batch
from choral.data.loading.host_loader import BatchRequest
from choral.data.loading.input_pipeline import InputPipeline
from choral.data.loading.input_spec import Normalization
from choral.data.loading.rank_place import RankPlace
from choral.data.loading.split import open_dataset, open_split
from choral.models.output_spec import OutputSpec
from choral.runs.run_dir import RunDir
from choral.training.loop import train
from choral.training.objective import Objective
from choral.training.optimizer import build_optimizer
from choral.training.trainer import Trainer

NORMALIZATION = Normalization((0.5,) * 3, (0.5,) * 3)


def test_steps_equal_a_plain_loop(config_file: Path, tmp_path: Path, run: Runtime) -> None:
    """AdamW, label smoothing, clipping, warm-up and accumulation: three steps, compared with a plain loop."""
    overrides = ["train.optimizer=adamw", "train.lr=1e-2", "train.label_smoothing=0.1", "train.max_grad_norm=0.5"]
    config = load_config(config_file, [*overrides, "train.warmup_epochs=1"])
    trainer = Trainer(config, RunDir(tmp_path / "run"), run)
    twin = Trainer(config, RunDir(tmp_path / "twin"), run).network
    optimizer = build_optimizer(twin, config.train)
    with trainer.batches_from(0) as loader, trainer.batches_from(0) as twin_loader:
        batches = iter(loader)
        for step in range(3):
            loss = trainer.train_step(batches, step)
            batch = next(twin_loader)
            for group in optimizer.param_groups:
                group["lr"] = 1e-2 * (step + 1) / 4  # three steps an epoch, one epoch of warm-up
            twin.train()
            twin_loss = F.cross_entropy(twin(batch.images), batch.labels, label_smoothing=0.1)
            optimizer.zero_grad()
            twin_loss.backward()
            torch.nn.utils.clip_grad_norm_(twin.parameters(), 0.5)
            optimizer.step()
            assert loss.item() == pytest.approx(twin_loss.item(), rel=1e-6)
    for name, tensor in trainer.network.state_dict().items():
        # Adam divides by the gradient's own size, so the rounding of a gradient near zero shows in the update.
        torch.testing.assert_close(tensor, twin.state_dict()[name], rtol=1e-4, atol=1e-5)


def test_validation_counts_each_sample_once(config_file: Path, tmp_path: Path, run: Runtime) -> None:
    config = load_config(config_file)
    trainer = Trainer(config, RunDir(tmp_path / "run"), run)
    report = trainer.validate()
    place = RankPlace(0, 1, torch.device("cpu"))
    split = open_split(config, open_dataset(config.data), "val", place)
    norm = trainer.normalization
    losses, hits = [], []
    with InputPipeline(config, split, place, norm, tmp_path / "bad").evaluation_batches() as loader:
        batches = list(loader)
    with torch.no_grad():
        for batch in batches:
            logits = trainer.network.eval()(batch.images)
            losses.append(F.cross_entropy(logits, batch.labels, reduction="none"))
            hits.append(logits.argmax(1) == batch.labels)
    assert report["n"] == 13 == len(torch.cat(losses))
    assert report["log_loss"] == pytest.approx(torch.cat(losses).mean().item(), rel=1e-5)
    assert report["accuracy"] == pytest.approx(torch.cat(hits).float().mean().item())
    rows = [row for batch in batches for row in batch.rows.tolist()]
    assert rows == list(range(13))


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_validation_without_a_readable_sample_is_an_error(
    config_file: Path, tmp_path: Path, run: Runtime, monkeypatch: pytest.MonkeyPatch, task: str
) -> None:
    trainer = Trainer(load_config(config_file), RunDir(tmp_path / "run"), run)

    class NothingValid(contextlib.nullcontext[None]):
        def __init__(self, *arguments: object) -> None:
            super().__init__(self)

        def __iter__(self) -> Iterator[Batch]:
            yield Batch(torch.zeros(2, 3, 32, 32), labels, torch.zeros(2) > 0, rows, 0, 0)

    labels, rows = torch.zeros(2, dtype=torch.int64), np.arange(2)
    if task == "multilabel":
        labels = torch.zeros(2, 3)
        trainer.objective = Objective(OutputSpec("multilabel", ("a", "b", "c")), "bce")
    monkeypatch.setattr(InputPipeline, "evaluation_batches", NothingValid)
    with pytest.raises(DataError, match=r"no sample of split 'val' could be read, .*bad_samples\.jsonl"):
        trainer.evaluate()


def test_evaluation_images_do_not_depend_on_augmentation(config_file: Path, tmp_path: Path) -> None:
    place, images = RankPlace(0, 1, torch.device("cpu")), []
    for override in ("augment.rot90=yes", "augment.rot90=no"):
        config = load_config(
            config_file, [override, "augment.vflip=1", "augment.contrast=0.9"][: 3 if "yes" in override else 1]
        )
        split = open_split(config, open_dataset(config.data), "test", place)
        with InputPipeline(config, split, place, NORMALIZATION, tmp_path / "bad").evaluation_batches() as loader:
            images.append(torch.cat([batch.images for batch in loader]))
    assert torch.equal(images[0], images[1])


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("workers", [0, 2])
def test_training_images_do_not_depend_on_ranks_or_workers(
    config_file: Path, tmp_path: Path, world_size: int, workers: int
) -> None:
    config = load_config(config_file, [f"data.workers={workers}", "data.cache_gib=0"])
    ranks = []
    for rank in range(world_size):
        place = RankPlace(rank, world_size, torch.device("cpu"))
        split = open_split(config, open_dataset(config.data), "train", place)
        with InputPipeline(config, split, place, NORMALIZATION, tmp_path / "bad").training_batches(range(5)) as loader:
            ranks.append([batch.images.clone() for batch in loader])
    batches = [torch.cat(parts) for parts in zip(*ranks, strict=True)]
    assert [len(batch) for batch in batches] == [12] * 5
    place = RankPlace(0, 1, torch.device("cpu"))
    cached = load_config(config_file)
    split = open_split(cached, open_dataset(cached.data), "train", place)
    assert split.cache is not None
    with InputPipeline(cached, split, place, NORMALIZATION, tmp_path / "bad").training_batches(range(5)) as loader:
        for batch, expected in zip(loader, batches, strict=True):
            assert torch.equal(batch.images, expected)


@pytest.mark.parametrize("workers", [0, 2])
def test_balanced_batches_do_not_depend_on_ranks(config_file: Path, tmp_path: Path, workers: int) -> None:
    """Each class occurs once in three samples; images and labels are the same for one rank and two."""
    config = load_config(config_file, ["data.sampling=balanced", f"data.workers={workers}", "augment.mixup=0.2"])
    found = []
    for world_size in (1, 2):
        ranks = []
        for rank in range(world_size):
            place = RankPlace(rank, world_size, torch.device("cpu"))
            split = open_split(config, open_dataset(config.data), "train", place)
            with InputPipeline(config, split, place, NORMALIZATION, tmp_path / "bad").training_batches(
                range(9)
            ) as loader:
                ranks.append([(batch.images.clone(), batch.labels, batch.rows) for batch in loader])
        steps = zip(*ranks, strict=True)
        found.append(
            [[torch.cat([*map(torch.as_tensor, parts)]) for parts in zip(*step, strict=True)] for step in steps]
        )
    for alone, together in zip(*found, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))
        assert alone[1].reshape(-1, 3).sort(dim=1).values.tolist() == [[0, 1, 2]] * 4
        assert alone[1].tolist() == split.index.labels[alone[2].numpy()].tolist()
    repeated = [
        BatchRequest(np.array([5, 5 + 37, 5 + 74]), 0, 0)
    ]  # of 37 samples: the same one, three times in an epoch
    with InputPipeline(config, split, place, NORMALIZATION, tmp_path / "bad").augmented_batches(repeated) as loader:
        batch = next(loader)
    assert batch.rows.tolist() == [5, 5, 5] and len(set(batch.labels.tolist())) == 1
    assert not torch.equal(batch.images[0], batch.images[1]) and not torch.equal(batch.images[1], batch.images[2])


@pytest.mark.parametrize("where", ["loss on rank 0", "gradient"])
def test_non_finite_loss_stops_before_the_update(config_file: Path, tmp_path: Path, run: Runtime, where: str) -> None:
    config = load_config(config_file)
    trainer = Trainer(config, RunDir(tmp_path / "run"), run)
    weight = next(trainer.network.parameters())
    if where == "gradient":
        weight.register_hook(lambda gradient: gradient * float("inf"))
    else:
        weight.data[0] = float("nan")
    before = {name: value.clone() for name, value in trainer.network.named_parameters()}
    with (
        trainer.batches_from(0) as loader,
        pytest.raises(ChoralError, match=f"step 0: the {where} is not finite.*no update was made"),
    ):
        trainer.train_step(iter(loader), 0)
    for name, value in trainer.network.named_parameters():
        assert torch.equal(value.nan_to_num(), before[name].nan_to_num())


def test_bf16_computes_in_bf16_and_keeps_float32_weights(config_file: Path, tmp_path: Path) -> None:
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    config = load_config(config_file, ["train.precision=bf16", "train.steps=3"])
    run = Runtime("bf16", 1, 60, tmp_path / "run" / "stop")
    trainer = Trainer(config, RunDir(tmp_path / "run"), run)
    seen = []
    trainer.network.fc.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    with trainer.batches_from(0) as loader:
        assert trainer.train_step(iter(loader), 0).isfinite()
    assert 0 < trainer.validate()["log_loss"] < 10
    assert set(seen) == {torch.bfloat16}
    assert {parameter.dtype for parameter in trainer.network.parameters()} == {torch.float32}


def test_fp16_without_a_gpu_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    with pytest.raises(ConfigError, match=r"train\.precision: fp16 needs a GPU"):
        Runtime("fp16", 1, 60, tmp_path / "stop")


def test_repacked_data_are_refused(config_file: Path, tmp_path: Path, run: Runtime) -> None:
    """A run is neither resumed nor evaluated on shards that were packed again from other images."""
    packed = tmp_path / "packed"
    shutil.copytree(load_config(config_file).data.shards, packed)
    config = load_config(config_file, [f"data.shards={packed}", "train.steps=4"])
    folder = RunDir(tmp_path / "run")
    folder.path.mkdir()
    folder.stop_file.touch()
    with pytest.raises(Stopped):
        train(config, folder, run)
    content = (packed / "dataset.json").read_text()
    fingerprint = json.loads(content)["fingerprint"]
    (packed / "dataset.json").write_text(content.replace(fingerprint, "0" * 64))
    with pytest.raises(DataError, match=f"different data .*fingerprint {fingerprint[:12]}, now 000000000000"):
        train(config, folder, run)


def test_stop_is_not_delayed_by_validation_which_is_made_later(
    config_file: Path, tmp_path: Path, run: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(config_file, ["train.steps=3"])  # an epoch: validation is due at step 3, where the stop comes
    whole, folder = RunDir(tmp_path / "whole"), RunDir(tmp_path / "run")
    whole.path.mkdir()
    folder.path.mkdir()
    train(config, whole, run)
    answers = iter([False, False, True])
    with monkeypatch.context() as patch:
        patch.setattr(run, "should_stop", lambda: next(answers))
        with pytest.raises(Stopped, match="at step 3 of 3"):
            train(config, folder, run)
    assert folder.result is None and not (folder.checkpoints / "best.json").exists()
    train(config, folder, run)
    found, expected = folder.result, whole.result
    assert found is not None and expected is not None
    assert found | {"train_minutes": 0} == expected | {"train_minutes": 0}
    assert (folder.checkpoints / "best.json").read_text() == (whole.checkpoints / "best.json").read_text()


def test_stop_file_saves_and_stops(config_file: Path, tmp_path: Path, run: Runtime) -> None:
    config = load_config(config_file, ["train.save_every_steps=100"])
    folder = RunDir(tmp_path / "run")
    folder.path.mkdir()
    folder.stop_file.touch()
    with pytest.raises(Stopped, match="stopped by request at step 1 of 10; run the same command again"):
        train(config, folder, run)
    assert not folder.stop_file.exists()
    assert train(config, folder, run).step == 10
    steps = [json.loads(line)["step"] for line in (folder.path / "metrics.jsonl").read_text().splitlines()]
    assert steps == [2, 3, 4, 6, 6, 8, 9, 10, 10]
