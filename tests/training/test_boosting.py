"""SAMME: weights and votes against a loop over samples, the ends of a chain, and what a start after a sudden end repairs."""

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

from choral.cli import workflow
from choral.config import Config
from choral.config.files import load_config
from choral.core.errors import ChoralError, ConfigError, DataError, Stopped
from choral.core.process_group import Runtime
from choral.data.loading.boosting_weights import Round, Rounds, keep_rounds, keep_weights, rounds_of, weights_of_round
from choral.data.loading.input_pipeline import RankPlace, evaluation_batches, open_dataset, open_split
from choral.data.packing.options import PackOptions
from choral.data.packing.pack import pack
from choral.data.shards.index import Dataset, Index
from choral.ensembles.member_jobs import member_config, pending_jobs
from choral.inference.trained_models import TrainedModel, find_trained_models, member_run_dirs
from choral.runs.run_dir import RunDir
from choral.training import boosting
from choral.training.__main__ import main
from choral.training.boosting import samme_round
from choral.training.loop import train
from choral.training.trainer import Trainer
from toys import Choral


def samme(misses: Sequence[Sequence[bool]], classes: int) -> tuple[list[float], list[list[float]]]:
    """Return the votes of members that miss these samples, and the weights after each, as Zhu et al. write them down."""
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
def test_weights_and_votes_are_those_of_samme(classes: int) -> None:
    random = np.random.default_rng(classes)
    misses = random.random((5, 200)) < 0.35 * (1 - 1 / classes)
    weights, all_read = np.ones(200), np.ones(200, dtype=bool)
    alphas, tables = samme(misses.tolist(), classes)
    for missed, alpha, table in zip(misses, alphas, tables, strict=True):
        found = samme_round(weights, missed, all_read, classes)
        assert found.alpha == pytest.approx(alpha, rel=1e-12) and found.counts and not found.end
        np.testing.assert_allclose(found.weights, table, rtol=1e-10)
        assert found.weights.mean() == pytest.approx(1, rel=1e-12)
        weights = found.weights
        # What a member has missed weighs as much, in the next round, as chance would miss: it is to look elsewhere.
        assert weights[missed].sum() / weights.sum() == pytest.approx(1 - 1 / classes)


def test_a_member_that_is_no_better_than_chance_ends_the_chain() -> None:
    all_read = np.ones(6, dtype=bool)
    for classes, missed in ((3, [1, 1, 1, 1, 0, 0]), (3, [1] * 6), (2, [1, 1, 1, 0, 0, 0])):
        found = samme_round(np.ones(6), np.array(missed, dtype=bool), all_read, classes, "round4")
        assert not found.counts
        error = sum(missed) / 6
        assert found.end == (
            f"round4 is no better than chance (weighted error {error:.4g}, chance {1 - 1 / classes:.4g})"
        )
    better = samme_round(
        np.ones(6), np.array([1, 1, 1, 0, 0, 0], dtype=bool), all_read, 3
    )  # of three classes, a half is
    assert better.counts and better.alpha == pytest.approx(math.log(2))


def test_a_member_without_an_error_ends_the_chain_with_a_finite_vote() -> None:
    weights = np.array([0.1, 0.4, 1.5, 2.0])
    found = samme_round(weights, np.zeros(4, dtype=bool), np.ones(4, dtype=bool), 3, "round2")
    assert found.counts and found.error == 0
    assert found.end == "round2 gets every training sample right: nothing is left to weigh more"
    for missed in range(4):  # more than with any error
        assert found.alpha > samme_round(weights, np.arange(4) == missed, np.ones(4, dtype=bool), 3).alpha
    assert found.alpha == pytest.approx(math.log((1 - 0.0125) / 0.0125) + math.log(2))


def test_samples_that_cannot_be_read_count_nothing_and_keep_their_share() -> None:
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
    folder.member(name).claim(own)
    train(own, folder.member(name), run)


def predicted(
    config: Config, model: TrainedModel, name: str, tmp_path: Path
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the classes that a voice gives the samples of a split, and those that they have."""
    place = RankPlace(0, 1, torch.device("cpu"))
    split = open_split(config, open_dataset(config.data), name, place)
    network = model.load(torch.device("cpu"))
    with evaluation_batches(config, split, place, model.mean, model.std, tmp_path / "bad") as loader:
        found = torch.cat([network(batch.images).argmax(1).detach() for batch in loader])
    return found.numpy(), split.index.labels


def left_in(folder: RunDir) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder.path / "boosting").iterdir()}


def test_boosting_beats_the_weak_network_it_starts_with(weak: Config, tmp_path: Path, run: Runtime) -> None:
    """And its tables are what the networks' answers on the training split say; doing a round again changes nothing."""
    folder = RunDir(tmp_path / "run")
    for number in range(1, 6):
        train_round(weak, folder, number, run)
    rounds = rounds_of(folder)
    assert rounds is not None and not rounds.ended and list(rounds.alphas) == [f"round{n}" for n in range(1, 6)]
    models, unfinished = find_trained_models(folder, weak)
    assert not unfinished

    index = Index.open(Dataset.open(weak.data.shards), "train")
    found = [predicted(weak, model, "train", tmp_path) for model in models]
    alphas, tables = samme([(answers != labels).tolist() for answers, labels in found], 2)
    assert list(rounds.alphas.values()) == pytest.approx(alphas, rel=1e-9)
    for number, table in enumerate(tables, start=1):
        np.testing.assert_allclose(weights_of_round(folder, number, index), table, rtol=1e-9)
    kept = pa.ipc.open_file((folder.path / "boosting" / "round-2.arrow").read_bytes()).read_all()
    assert kept["key"].to_pylist() == index.keys(np.arange(len(index)))
    assert (weights_of_round(folder, 0, index) == 1).all()

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


def test_a_round_that_is_trained_again_leaves_the_others_only_where_it_came_to_the_same(
    weak: Config, tmp_path: Path, run: Runtime
) -> None:
    folder = RunDir.of(weak)
    for number in (1, 2, 3):
        train_round(weak, folder, number, run)
    before = left_in(folder)
    shutil.rmtree(folder.member("round1").path)
    train_round(weak, folder, 1, run)
    assert left_in(folder) == before
    models, unfinished = find_trained_models(folder, weak)
    assert [model.name for model in models] == ["round1", "round2", "round3"] and unfinished == ["round4", "round5"]

    shutil.rmtree(folder.member("round1").path)
    known = rounds_of(folder)
    assert known is not None
    other = replace(known.rounds[0], error=known.rounds[0].error + 0.01)  # what it came to when the others were trained
    keep_rounds(folder, replace(known, rounds=(other, *known.rounds[1:])))
    train_round(weak, folder, 1, run)
    rounds = rounds_of(folder)
    assert rounds is not None and rounds.rounds == known.rounds[:1]
    refused = "round2, round3: trained after another round than .*; delete .*round2, "
    with pytest.raises(ChoralError, match=refused):
        find_trained_models(folder, weak)
    with pytest.raises(ChoralError, match=refused):
        pending_jobs(weak, folder)
    for number in (2, 3):
        shutil.rmtree(folder.member(f"round{number}").path)
    assert [job.name for job in pending_jobs(weak, folder)] == ["round2", "round3", "round4", "round5"]


@pytest.mark.parametrize("moment", ["_answers", "keep_weights", "keep_rounds", "stop"])
def test_a_death_between_training_and_weighing_is_made_up_for(
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
    assert member.result is None and rounds_of(folder) is None
    assert list(member.checkpoints.glob("step-00000006"))
    with pytest.raises(
        ChoralError, match=r"round 2 of boosting needs the weights that round 1 leaves in .*boosting, but 0"
    ):
        workflow.train_one(member_config(weak, "round2"), folder.member("round2"), [], 1)
    train_round(weak, folder, 1, run)
    assert left_in(folder) == left_in(whole) and member.result is not None


def test_the_end_of_a_chain_leaves_members_out(
    weak: Config, tmp_path: Path, run: Runtime, capsys: pytest.CaptureFixture[str]
) -> None:
    weak = load_config(tmp_path / "toy.yaml", ["finetune.regularization=1"])
    folder = RunDir.of(weak)
    for number in (1, 2, 3):
        train_round(weak, folder, number, run)
    rounds = rounds_of(folder)
    assert rounds is not None and rounds.ended.startswith("round3 is no better than chance (weighted error 0.5")
    assert folder.member("round3").result is None
    assert list(member_run_dirs(folder, weak)) == ["round1", "round2"]
    models, unfinished = find_trained_models(folder, weak)
    assert [model.name for model in models] == ["round1", "round2"] and not unfinished
    assert not pending_jobs(weak, folder)
    assert workflow.train_all(weak, folder, Console(stderr=True)) == 0  # nothing is started
    assert "boosting has ended: round3 is no better" in capsys.readouterr().err.replace("\n", " ")
    for number in (3, 4):  # as a job of a cluster's queue would be, that was submitted before
        member = folder.member(f"round{number}")
        (tmp_path / "requested.yaml").write_text("")
        assert workflow.train_one(member_config(weak, f"round{number}"), member, [], 1) == 0
        assert "not trained: the chain has ended: round3 is no better" in capsys.readouterr().err
    overrides = ["data.resample.kind=boost", "data.resample.number=3"]
    assert main([str(tmp_path / "toy.yaml"), *overrides, "--folder", str(folder.member("round4").path)]) == 0
    assert "not trained: the chain has ended" in capsys.readouterr().err


def test_a_chain_that_ends_before_its_first_member_says_so(weak: Config) -> None:
    folder = RunDir.of(weak)
    keep_rounds(folder, Rounds((), "round1 is no better than chance", "fingerprint"))
    with pytest.raises(ChoralError, match="none of 5 members could be trained: round1 is no better than chance"):
        workflow.train_all(weak, folder, Console(stderr=True))
    with pytest.raises(ChoralError, match=r"no member has finished training \(round1 is no better than chance\)"):
        find_trained_models(folder, weak)


def test_members_are_trained_one_after_the_other(
    weak: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Up to the end of the chain; a member that fails ends the call, and a second one goes on with it."""
    folder, console = RunDir.of(weak), Console(stderr=True, width=200)
    started: list[str] = []
    failing = {"round2"}

    def run_jobs(jobs, slots, **further):
        (job,) = jobs
        started.append(job.name)
        assert len(slots) == 1
        known = rounds_of(folder)
        assert job.name == f"round{len(known.rounds) + 1 if known else 1}"
        if job.name in failing:
            return [members_module.Outcome(job, "failed", 1, 1, "error: no luck", "exit status 1")]
        rounds = (*(known.rounds if known else ()), Round(job.name, 0.25, 1.0))
        ended = "round3 gets every training sample right" if job.name == "round3" else ""
        keep_rounds(folder, Rounds(rounds, ended, "fingerprint"))
        (job.folder / "result.json").write_text("{}")
        return [members_module.Outcome(job, "done", 0, 1, "", "")]

    from choral.ensembles import member_jobs as members_module

    monkeypatch.setattr(members_module, "run_jobs", run_jobs)
    assert workflow.train_all(weak, folder, console) == 1
    assert started == ["round1", "round2"]
    words = capsys.readouterr().err
    assert "1 of 5 members; without round2: failed: " in words and "round3: not started" in words
    failing.clear()
    started.clear()
    assert workflow.train_all(weak, folder, console) == 0
    assert started == ["round2", "round3"]
    assert "boosting has ended: round3 gets every training sample right" in capsys.readouterr().err


def test_a_member_of_a_chain_lives_in_an_ensemble(weak: Config, tmp_path: Path) -> None:
    config = load_config(tmp_path / "toy.yaml", ["ensemble.boosting=0", "data.resample.kind=boost"])
    with pytest.raises(ConfigError, match="belongs to the members of an ensemble, .* set ensemble.boosting instead"):
        workflow.train_one(config, RunDir(tmp_path / "run"), [], 1)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["task=multilabel", "data.targets=[x]"], "ensemble.boosting: needs task: multiclass"),
        (["train.class_weights=balanced"], "train.class_weights: balanced and boosting both say how much"),
        (["data.lanes=2", "ensemble.boosting_by=sampling"], "data.lanes: boosting by sampling reads everywhere"),
        (["ensemble.seeds=2"], "ensemble.boosting: is one chain of members, and goes with no other generator"),
    ],
)
def test_what_makes_no_sense_with_boosting_is_refused(
    weak: Config, tmp_path: Path, overrides: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(tmp_path / "toy.yaml", overrides)


def test_tables_of_other_data_and_damaged_ones_are_refused(weak: Config, tmp_path: Path) -> None:
    dataset = Dataset.open(weak.data.shards)
    index, folder = Index.open(dataset, "train"), RunDir(tmp_path / "run")
    keep_weights(folder, 1, Index.open(dataset, "val"), np.ones(40))
    keep_rounds(folder, Rounds((Round("round1", 0.2, 1.0),), "", dataset.fingerprint))
    with pytest.raises(
        DataError, match="round-2.arrow: holds other keys than split 'train'; delete result.json of the"
    ):
        weights_of_round(folder, 1, index)
    (folder.path / "boosting" / "round-2.arrow").write_bytes(b"half")
    with pytest.raises(DataError, match="round-2.arrow: cannot be read"):
        weights_of_round(folder, 1, index)
    keep_weights(folder, 1, index, np.ones(120))
    keep_rounds(folder, Rounds((Round("round1", 0.2, 1.0),), "", "0" * 64))
    with pytest.raises(DataError, match="was trained on other data than those packed now"):
        weights_of_round(folder, 1, index)


@pytest.mark.parametrize("mixed", [False, True])
def test_weighted_losses_are_those_of_a_plain_loop(
    config_file: Path, tmp_path: Path, run: Runtime, mixed: bool
) -> None:
    """The loss of a mixed image is that to both labels, each times the weight of the sample it is of, and its share."""
    overrides = ["data.resample.kind=boost", "data.resample.number=1", "train.max_grad_norm=null"]
    config = load_config(config_file, [*overrides, f"augment.mixup={0.4 * mixed}"])
    dataset = Dataset.open(config.data.shards)
    index, folder = Index.open(dataset, "train"), RunDir(tmp_path / "run")
    weights = np.random.default_rng(0).gamma(1, size=len(index))
    weights /= weights.mean()
    keep_weights(folder, 1, index, weights)
    keep_rounds(folder, Rounds((Round("round1", 0.2, 1.0),), "", dataset.fingerprint))
    member = folder.member("round2")
    trainer = Trainer(config, member, run)
    twin = Trainer(config, member, run).network
    optimizer = torch.optim.SGD(twin.parameters(), lr=trainer.schedule.at(0), momentum=0.9, nesterov=True)
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
        moved = trainer.schedule.at(0) * 1.9 * (gradient + decay * start[name])  # Nesterov's first step
        torch.testing.assert_close(value.detach(), start[name] - moved, rtol=1e-4, atol=1e-5)


def test_sampling_draws_what_a_round_weighs(config_file: Path, tmp_path: Path, run: Runtime) -> None:
    """Heavy samples come often, each time with random numbers of its own; the losses themselves are not weighted."""
    overrides = ["data.resample.kind=boost", "data.resample.number=1", "data.resample.by=sampling", "train.steps=30"]
    config = load_config(config_file, overrides)
    dataset = Dataset.open(config.data.shards)
    index, folder = Index.open(dataset, "train"), RunDir(tmp_path / "run")
    weights = np.full(37, 17 / 36)
    weights[5] = 20.0
    keep_weights(folder, 1, index, weights)
    keep_rounds(folder, Rounds((Round("round1", 0.2, 1.0),), "", dataset.fingerprint))
    trainer = Trainer(config, folder.member("round2"), run)
    with trainer.batches_of(range(30)) as loader:
        batches = list(loader)
    rows = np.concatenate([batch.rows for batch in batches])
    assert np.mean(rows == 5) == pytest.approx(20 / 37, abs=0.1)
    images = torch.cat([batch.images for batch in batches[:3]])[rows[:36] == 5]  # of one epoch
    assert len(images) > 10 and len({float(image.sum()) for image in images}) == len(images)
    logits = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
    losses = trainer.objective.losses(logits, batches[0])
    assert torch.equal(losses, F.cross_entropy(logits, batches[0].labels, reduction="none"))


def test_a_boosting_run_from_the_command_line(config_file: Path, tmp_path: Path, choral: Choral) -> None:
    """Three rounds, of which the last may be no better than chance."""
    overrides = ["ensemble.boosting=3", "ensemble.boosting_by=sampling", "train.steps=3", "evaluate.checkpoint=last"]
    result = choral("run", config_file, *overrides, "evaluate.splits=test", "evaluate.views=identity", timeout=800)
    assert result.returncode == 0, result.stderr
    folder = RunDir(tmp_path / "runs" / "toy")
    rounds = rounds_of(folder)
    assert rounds is not None and len(rounds.rounds) >= 2
    rows = json.loads((folder.path / "scores-test.json").read_text())["rows"]
    names = [row["name"] for row in rows if row["name"].startswith("member/")]
    assert names == [f"member/{name}" for name in rounds.alphas]
    assert ("boosting has ended" in result.stderr) == bool(rounds.ended) == (len(names) < 3)
