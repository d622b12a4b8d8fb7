"""Boosting (SAMME): weights and votes against a loop over samples, the ends of a chain, and recovery after a crash."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from torch.nn import functional as F

from choral.cli.workflow.training import train_all, train_one
from choral.config import Config
from choral.config.files import load_config
from choral.core.errors import ChoralError, ConfigError, DataError, Stopped
from choral.core.process_group import Runtime
from choral.data.loading.boosting_weights import (
    Round,
    Rounds,
    read_round_weights,
    read_rounds,
    write_round_weights,
    write_rounds,
)
from choral.data.loading.input_pipeline import InputPipeline
from choral.data.loading.input_spec import Normalization
from choral.data.loading.rank_place import RankPlace
from choral.data.loading.split import open_dataset, open_split
from choral.data.packing.options import PackOptions
from choral.data.packing.pack import pack
from choral.data.shards.index import Dataset, Index
from choral.ensembles.member_jobs import build_pending_jobs, member_config
from choral.inference.run_models import find_trained_models, member_run_dirs
from choral.inference.trained_model import TrainedModel
from choral.runs.run_dir import RunDir
from choral.training import boosting
from choral.training.__main__ import main
from choral.training.boosting import samme_round
from choral.training.loop import train
from choral.training.trainer import Trainer
from toy_data import Choral


def samme(misses: Sequence[Sequence[bool]], classes: int) -> tuple[list[float], list[list[float]]]:
    """Return the votes of members that misclassify these samples, and the weights after each, as in Zhu et al."""
    count = len(misses[0])
    weights = [1 / count] * count
    alphas, tables = [], []
    for missed in misses:
        error = sum(w for w, wrong in zip(weights, missed, strict=True) if wrong) / sum(weights)
        alpha = math.log((1 - error) / error) + math.log(classes - 1)
        weights = [w * math.exp(alpha) if wrong else w for w, wrong in zip(weights, missed, strict=True)]
        weights = [w / sum(weights) for w in weights]
        alphas.append(alpha)
        tables.append([w * count for w in weights])
    return alphas, tables


@pytest.mark.parametrize("classes", [2, 3, 11])
def test_weights_and_votes_equal_samme(classes: int) -> None:
    random = np.random.default_rng(classes)
    misses = random.random((5, 200)) < 0.35 * (1 - 1 / classes)
    weights, all_read = np.ones(200), np.ones(200, dtype=bool)
    alphas, tables = samme(misses.tolist(), classes)
    for missed, alpha, table in zip(misses, alphas, tables, strict=True):
        found = samme_round(weights, missed, all_read, classes)
        assert found.alpha == pytest.approx(alpha, rel=1e-12) and found.accepted and not found.stop_reason
        np.testing.assert_allclose(found.weights, table, rtol=1e-10)
        assert found.weights.mean() == pytest.approx(1, rel=1e-12)
        weights = found.weights
        # What a member has missed weighs as much, in the next round, as chance would miss: it is to look elsewhere.
        assert weights[missed].sum() / weights.sum() == pytest.approx(1 - 1 / classes)


def test_member_no_better_than_chance_ends_the_chain() -> None:
    all_read = np.ones(6, dtype=bool)
    for classes, missed in ((3, [1, 1, 1, 1, 0, 0]), (3, [1] * 6), (2, [1, 1, 1, 0, 0, 0])):
        found = samme_round(np.ones(6), np.array(missed, dtype=bool), all_read, classes, "round4")
        assert not found.accepted
        error = sum(missed) / 6
        assert found.stop_reason == (
            f"round4 is no better than chance (weighted error {error:.4g}, chance {1 - 1 / classes:.4g})"
        )
    better = samme_round(
        np.ones(6), np.array([1, 1, 1, 0, 0, 0], dtype=bool), all_read, 3
    )  # of three classes, a half is
    assert better.accepted and better.alpha == pytest.approx(math.log(2))


def test_member_without_errors_ends_the_chain_with_a_finite_vote() -> None:
    weights = np.array([0.1, 0.4, 1.5, 2.0])
    found = samme_round(weights, np.zeros(4, dtype=bool), np.ones(4, dtype=bool), 3, "round2")
    assert found.accepted and found.error == 0
    assert found.stop_reason == "round2 classifies every training sample correctly: none is left to reweight"
    for missed in range(4):  # more than with any error
        assert found.alpha > samme_round(weights, np.arange(4) == missed, np.ones(4, dtype=bool), 3).alpha
    assert found.alpha == pytest.approx(math.log((1 - 0.0125) / 0.0125) + math.log(2))


def test_unreadable_samples_are_ignored_and_keep_their_weight() -> None:
    wrong, read = np.array([True, True, False, False, False]), np.array([True, False, True, True, True])
    found = samme_round(np.ones(5), wrong, read, 2)
    assert found.error == 0.25
    assert found.weights[1] == found.weights[2] and found.weights[0] == pytest.approx(3 * found.weights[2])


@pytest.fixture(scope="session")
def bands(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Grey images of two classes that alternate with brightness: a linear head cannot have three thresholds."""
    root = tmp_path_factory.mktemp("bands")
    for split, count in {"train": 120, "val": 40, "test": 120}.items():
        for number in range(count):
            share = (number + 0.5) / count
            path = root / "photos" / split / "abab"[int(4 * share)] / f"{split}{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            noise = np.random.default_rng(number + 1000 * len(split)).normal(0, 12, (16, 16, 3))
            level = 255 * (0.1 + 0.8 * share)
            Image.fromarray(np.clip(level + noise, 0, 255).astype(np.uint8)).save(path)
    pack(str(root / "photos"), root / "shards", PackOptions(processes=1))
    return root / "shards"


@pytest.fixture
def weak(bands: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """Five rounds of a regularised linear head on features of a random network."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "toy.yaml"
    path.write_text(
        f"data: {{shards: '{bands}', image_size: 32, eval_crop: resized}}\n"
        "model: {name: test_resnet, weights: none}\n"
        "finetune: {strategy: linear, regularization: 0.3}\n"
        "train: {batch_size: 12, timeout_s: 120}\n"
        "evaluate: {splits: [test], views: [identity]}\n"
        "ensemble: {boosting: 5}\n"
        "tracking: {wandb: 'off'}\n"
    )
    return load_config(path)


def train_round(config: Config, folder: RunDir, number: int, run: Runtime) -> None:
    name = f"round{number}"
    own = member_config(config, name)
    folder.member(name).store_config(own)
    train(own, folder.member(name), run)


def predicted(
    config: Config, model: TrainedModel, name: str, tmp_path: Path
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the classes that a model predicts for a split, and the labels."""
    place = RankPlace(0, 1, torch.device("cpu"))
    split = open_split(config, open_dataset(config.data), name, place)
    network = model.load(torch.device("cpu"))
    pipeline = InputPipeline(config, split, place, Normalization(model.mean, model.std), tmp_path / "bad")
    with pipeline.evaluation_batches() as loader:
        found = torch.cat([network(batch.images).argmax(1).detach() for batch in loader])
    return found.numpy(), split.index.labels


def left_in(folder: RunDir) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder.path / "boosting").iterdir()}


def test_boosting_beats_its_first_member(weak: Config, tmp_path: Path, run: Runtime) -> None:
    """The stored weights follow from the models' predictions on the training split; repeating a round changes nothing."""
    folder = RunDir(tmp_path / "run")
    for number in range(1, 6):
        train_round(weak, folder, number, run)
    rounds = read_rounds(folder)
    assert rounds is not None and not rounds.ended and list(rounds.alphas) == [f"round{n}" for n in range(1, 6)]
    models, unfinished = find_trained_models(folder, weak)
    assert not unfinished

    index = Index.open(Dataset.open(weak.data.shards), "train")
    found = [predicted(weak, model, "train", tmp_path) for model in models]
    alphas, tables = samme([(answers != labels).tolist() for answers, labels in found], 2)
    assert list(rounds.alphas.values()) == pytest.approx(alphas, rel=1e-9)
    for number, table in enumerate(tables, start=1):
        np.testing.assert_allclose(read_round_weights(folder, number, index), table, rtol=1e-9)
    kept = pa.ipc.open_file((folder.path / "boosting" / "round-2.arrow").read_bytes()).read_all()
    assert kept["key"].to_pylist() == index.keys(np.arange(len(index)))
    assert (read_round_weights(folder, 0, index) == 1).all()

    votes, single = np.zeros((120, 2)), 0.0
    for model in models:
        answers, labels = predicted(weak, model, "test", tmp_path)
        single = single or float((answers == labels).mean())
        votes += rounds.alphas[model.name] * np.eye(2)[answers]
    together = float((votes.argmax(1) == labels).mean())
    assert single < 0.85 and together > single + 0.1, (single, together)

    before = left_in(folder)
    (folder.member("round5").path / "result.json").unlink()
    train_round(weak, folder, 5, run)
    assert left_in(folder) == before and folder.member("round5").result


def test_retraining_a_round_keeps_later_rounds_only_if_the_result_is_equal(
    weak: Config, tmp_path: Path, run: Runtime
) -> None:
    folder = RunDir.from_config(weak)
    for number in (1, 2, 3):
        train_round(weak, folder, number, run)
    before = left_in(folder)
    shutil.rmtree(folder.member("round1").path)
    train_round(weak, folder, 1, run)
    assert left_in(folder) == before
    models, unfinished = find_trained_models(folder, weak)
    assert [model.name for model in models] == ["round1", "round2", "round3"] and unfinished == ["round4", "round5"]

    shutil.rmtree(folder.member("round1").path)
    known = read_rounds(folder)
    assert known is not None
    other = replace(known.rounds[0], error=known.rounds[0].error + 0.01)  # what it came to when the others were trained
    write_rounds(folder, replace(known, rounds=(other, *known.rounds[1:])))
    train_round(weak, folder, 1, run)
    rounds = read_rounds(folder)
    assert rounds is not None and rounds.rounds == known.rounds[:1]
    refused = "round2, round3: trained with the sample weights of an earlier version of .*; delete .*round2, "
    with pytest.raises(ChoralError, match=refused):
        find_trained_models(folder, weak)
    with pytest.raises(ChoralError, match=refused):
        build_pending_jobs(weak, folder)
    for number in (2, 3):
        shutil.rmtree(folder.member(f"round{number}").path)
    assert [job.name for job in build_pending_jobs(weak, folder)] == ["round2", "round3", "round4", "round5"]


@pytest.mark.parametrize("moment", ["_predict_training_split", "write_round_weights", "write_rounds", "stop"])
def test_a_crash_between_training_and_reweighting_is_recovered(
    weak: Config, tmp_path: Path, run: Runtime, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    whole, folder = RunDir(tmp_path / "whole"), RunDir(tmp_path / "killed")
    steps = ["finetune.strategy=full", "train.steps=6", "train.lr=3e-2", "train.save_every_steps=4"]
    weak = load_config(tmp_path / "toy.yaml", steps)
    train_round(weak, whole, 1, run)

    def die(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if moment == "stop":
            answers = iter([False] * 6 + [True])
            patch.setattr(run, "should_stop", lambda: next(answers))
        else:
            patch.setattr(boosting, moment, die)
        with pytest.raises(Stopped if moment == "stop" else KeyboardInterrupt):
            train_round(weak, folder, 1, run)
    member = folder.member("round1")
    assert member.result is None and read_rounds(folder) is None
    assert list(member.checkpoints.glob("step-00000006"))
    with pytest.raises(
        ChoralError, match=r"round 2 of boosting needs the weights that round 1 writes to .*boosting, but 0"
    ):
        train_one(member_config(weak, "round2"), folder.member("round2"), [], 1)
    train_round(weak, folder, 1, run)
    assert left_in(folder) == left_in(whole) and member.result is not None


def test_members_after_the_end_of_the_chain_are_left_out(
    weak: Config, tmp_path: Path, run: Runtime, capsys: pytest.CaptureFixture[str]
) -> None:
    weak = load_config(tmp_path / "toy.yaml", ["finetune.regularization=1"])
    folder = RunDir.from_config(weak)
    for number in (1, 2, 3):
        train_round(weak, folder, number, run)
    rounds = read_rounds(folder)
    assert rounds is not None and rounds.ended.startswith("round3 is no better than chance (weighted error 0.5")
    assert folder.member("round3").result is None
    assert list(member_run_dirs(folder, weak)) == ["round1", "round2"]
    models, unfinished = find_trained_models(folder, weak)
    assert [model.name for model in models] == ["round1", "round2"] and not unfinished
    assert not build_pending_jobs(weak, folder)
    assert train_all(weak, folder, Console(stderr=True)) == 0  # nothing is started
    assert "boosting has ended: round3 is no better" in capsys.readouterr().err.replace("\n", " ")
    for number in (3, 4):  # as a job of a cluster's queue would be, that was submitted before
        member = folder.member(f"round{number}")
        (tmp_path / "requested.yaml").write_text("")
        assert train_one(member_config(weak, f"round{number}"), member, [], 1) == 0
        assert "not trained: the chain has ended: round3 is no better" in capsys.readouterr().err
    overrides = ["data.resample.kind=boost", "data.resample.number=3"]
    assert main([str(tmp_path / "toy.yaml"), *overrides, "--folder", str(folder.member("round4").path)]) == 0
    assert "not trained: the chain has ended" in capsys.readouterr().err


def test_chain_that_ends_before_its_first_member_is_an_error(weak: Config) -> None:
    folder = RunDir.from_config(weak)
    write_rounds(folder, Rounds((), "round1 is no better than chance", "fingerprint"))
    with pytest.raises(ChoralError, match="none of 5 members could be trained: round1 is no better than chance"):
        train_all(weak, folder, Console(stderr=True))
    with pytest.raises(ChoralError, match=r"no member has finished training \(round1 is no better than chance\)"):
        find_trained_models(folder, weak)


def test_members_are_trained_one_after_the_other(
    weak: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Until the chain ends. A failing member ends the call, and the next call resumes with it."""
    folder, console = RunDir.from_config(weak), Console(stderr=True, width=200)
    started: list[str] = []
    failing = {"round2"}

    def run_jobs(jobs, slots, **further):
        (job,) = jobs
        started.append(job.name)
        assert len(slots) == 1
        known = read_rounds(folder)
        assert job.name == f"round{len(known.rounds) + 1 if known else 1}"
        if job.name in failing:
            return [members_module.Outcome(job, "failed", 1, 1, "error: no luck", "exit status 1")]
        rounds = (*(known.rounds if known else ()), Round(job.name, 0.25, 1.0))
        ended = "round3 classifies every training sample correctly" if job.name == "round3" else ""
        write_rounds(folder, Rounds(rounds, ended, "fingerprint"))
        (job.folder / "result.json").write_text("{}")
        return [members_module.Outcome(job, "done", 0, 1, "", "")]

    from choral.ensembles import member_jobs as members_module

    monkeypatch.setattr(members_module, "run_jobs", run_jobs)
    assert train_all(weak, folder, console) == 1
    assert started == ["round1", "round2"]
    words = capsys.readouterr().err
    assert "1 of 5 members; without round2: failed: " in words and "round3: not started" in words
    failing.clear()
    started.clear()
    assert train_all(weak, folder, console) == 0
    assert started == ["round2", "round3"]
    assert "boosting has ended: round3 classifies every training sample correctly" in capsys.readouterr().err


def test_boosting_member_outside_an_ensemble_is_refused(weak: Config, tmp_path: Path) -> None:
    config = load_config(tmp_path / "toy.yaml", ["ensemble.boosting=0", "data.resample.kind=boost"])
    with pytest.raises(ConfigError, match="applies only to members of an ensemble, .* set ensemble.boosting instead"):
        train_one(config, RunDir(tmp_path / "run"), [], 1)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["task=multilabel", "data.targets=[x]"], "ensemble.boosting: needs task: multiclass"),
        (["train.class_weights=balanced"], "train.class_weights: balanced and boosting both say how much"),
        (["data.lanes=2", "ensemble.boosting_by=sampling"], "data.lanes: boosting by sampling reads from all shards"),
        (["ensemble.seeds=2"], "ensemble.boosting: cannot be combined with other generators"),
    ],
)
def test_settings_incompatible_with_boosting_are_refused(
    weak: Config, tmp_path: Path, overrides: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(tmp_path / "toy.yaml", overrides)


def test_weights_of_other_data_and_damaged_ones_are_refused(weak: Config, tmp_path: Path) -> None:
    dataset = Dataset.open(weak.data.shards)
    index, folder = Index.open(dataset, "train"), RunDir(tmp_path / "run")
    write_round_weights(folder, 1, Index.open(dataset, "val"), np.ones(40))
    write_rounds(folder, Rounds((Round("round1", 0.2, 1.0),), "", dataset.fingerprint))
    with pytest.raises(
        DataError, match="round-2.arrow: its keys differ from those of split 'train'; delete result.json of the"
    ):
        read_round_weights(folder, 1, index)
    (folder.path / "boosting" / "round-2.arrow").write_bytes(b"half")
    with pytest.raises(DataError, match="round-2.arrow: cannot be read"):
        read_round_weights(folder, 1, index)
    write_round_weights(folder, 1, index, np.ones(120))
    write_rounds(folder, Rounds((Round("round1", 0.2, 1.0),), "", "0" * 64))
    with pytest.raises(DataError, match="was trained on different data"):
        read_round_weights(folder, 1, index)


@pytest.mark.parametrize("mixed", [False, True])
def test_weighted_losses_equal_a_plain_loop(config_file: Path, tmp_path: Path, run: Runtime, mixed: bool) -> None:
    """The loss of a mixed image is the sum over both labels of share times sample weight times loss."""
    overrides = ["data.resample.kind=boost", "data.resample.number=1", "train.max_grad_norm=null"]
    config = load_config(config_file, [*overrides, f"augment.mixup={0.4 * mixed}"])
    dataset = Dataset.open(config.data.shards)
    index, folder = Index.open(dataset, "train"), RunDir(tmp_path / "run")
    weights = np.random.default_rng(0).gamma(1, size=len(index))
    weights /= weights.mean()
    write_round_weights(folder, 1, index, weights)
    write_rounds(folder, Rounds((Round("round1", 0.2, 1.0),), "", dataset.fingerprint))
    member = folder.member("round2")
    trainer = Trainer(config, member, run)
    twin = Trainer(config, member, run).network
    optimizer = torch.optim.SGD(twin.parameters(), lr=trainer.schedule.lr_at(0), momentum=0.9, nesterov=True)
    for group in optimizer.param_groups:
        group["weight_decay"] = 0.0
    by_row = torch.from_numpy(weights).float()
    with trainer.batches_from(0) as loader, trainer.batches_from(0) as twin_loader:
        loss = trainer.train_step(iter(loader), 0)
        batch = next(iter(twin_loader))
    twin.train()
    logits = twin(batch.images)
    losses = by_row[batch.rows] * F.cross_entropy(logits, batch.labels, reduction="none")
    if mixed:
        assert batch.partners is not None and batch.shares is not None and (batch.shares < 1).any()
        partner_rows = torch.from_numpy(batch.partner_rows)
        assert (torch.from_numpy(index.labels.copy())[partner_rows] == batch.partners).all()
        others = by_row[partner_rows] * F.cross_entropy(logits, batch.partners, reduction="none")
        losses = batch.shares * losses + (1 - batch.shares) * others
    expected = losses.sum() / 12
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    expected.backward()
    gradients = {name: value.grad for name, value in twin.named_parameters()}
    unweighted = F.cross_entropy(logits.detach(), batch.labels)
    assert abs(expected.item() - unweighted.item()) > 1e-3  # weights do something
    start = {name: value.detach().clone() for name, value in twin.named_parameters()}
    for name, value in trainer.network.named_parameters():
        decay = config.train.weight_decay if value.ndim > 1 else 0.0
        gradient = gradients[name]
        assert gradient is not None
        moved = trainer.schedule.lr_at(0) * 1.9 * (gradient + decay * start[name])  # Nesterov's first step
        torch.testing.assert_close(value.detach(), start[name] - moved, rtol=1e-4, atol=1e-5)


def test_sampling_draws_by_the_weights_of_the_round(config_file: Path, tmp_path: Path, run: Runtime) -> None:
    """Samples with large weights are drawn often, with different random numbers each time; losses are not weighted."""
    overrides = ["data.resample.kind=boost", "data.resample.number=1", "data.resample.by=sampling", "train.steps=30"]
    config = load_config(config_file, overrides)
    dataset = Dataset.open(config.data.shards)
    index, folder = Index.open(dataset, "train"), RunDir(tmp_path / "run")
    weights = np.full(37, 17 / 36)
    weights[5] = 20.0
    write_round_weights(folder, 1, index, weights)
    write_rounds(folder, Rounds((Round("round1", 0.2, 1.0),), "", dataset.fingerprint))
    trainer = Trainer(config, folder.member("round2"), run)
    with trainer.batches_in(range(30)) as loader:
        batches = list(loader)
    rows = np.concatenate([batch.rows for batch in batches])
    assert np.mean(rows == 5) == pytest.approx(20 / 37, abs=0.1)
    images = torch.cat([batch.images for batch in batches[:3]])[rows[:36] == 5]  # of one epoch
    assert len(images) > 10 and len({float(image.sum()) for image in images}) == len(images)
    logits = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
    losses = trainer.objective.losses(logits, batches[0])
    assert torch.equal(losses, F.cross_entropy(logits, batches[0].labels, reduction="none"))


def test_boosting_run_from_the_command_line(config_file: Path, tmp_path: Path, choral: Choral) -> None:
    """Three rounds; the last one may be no better than chance."""
    overrides = ["ensemble.boosting=3", "ensemble.boosting_by=sampling", "train.steps=3", "evaluate.checkpoint=last"]
    result = choral("run", config_file, *overrides, "evaluate.splits=test", "evaluate.views=identity", timeout=800)
    assert result.returncode == 0, result.stderr
    folder = RunDir(tmp_path / "runs" / "toy")
    rounds = read_rounds(folder)
    assert rounds is not None and len(rounds.rounds) >= 2
    rows = json.loads((folder.path / "scores-test.json").read_text())["rows"]
    names = [row["name"] for row in rows if row["name"].startswith("member/")]
    assert names == [f"member/{name}" for name in rounds.alphas]
    assert ("boosting has ended" in result.stderr) == bool(rounds.ended) == (len(names) < 3)
