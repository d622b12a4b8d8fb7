"""Members as jobs: their configs, their slots on the machine, and an ensemble of which one member fails for good."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from choral.config import Config
from choral.config.files import load_config
from choral.core.errors import ConfigError
from choral.ensembles.member_jobs import _validation, build_pending_jobs, build_slots, member_config, progress_columns
from choral.runs.run_dir import RunDir
from toy_data import Choral

THREE = "ensemble.members=[{name: a}, {name: b, set: {seed: 5, train.lr: 1e-2}}, {name: c, set: {data.image_size: 48}}]"


@pytest.fixture
def config(config_file: Path) -> Config:
    return load_config(config_file, [THREE])


def test_members_differ_in_their_overrides(config: Config) -> None:
    a, b, c = (member_config(config, name) for name in "abc")
    assert (a.seed, b.seed, b.train.lr, c.data.image_size) == (0, 5, 1e-2, 48)
    assert (a.run, a.ensemble.members) == ("a", ())


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("train.lrr: 1", "ensemble.members.x.set: train.lrr: unknown key. Did you mean train.lr"),
        ("train.lr: -1", "ensemble.members.x.set: train.lr: expected a learning rate above 0"),
        ("evaluate.views: d4", "a member may set seed"),
    ],
)
def test_an_invalid_member_stops_the_run_before_the_first_starts(
    config_file: Path, tmp_path: Path, setting: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        config = load_config(config_file, [f"ensemble.members=[{{name: ok}}, {{name: x, set: {{{setting}}}}}]"])
        build_pending_jobs(config, RunDir(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_threads_depend_on_the_number_of_members_not_on_max_parallel(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A member's result depends on its threads in the last bit, so they must not depend on max_parallel."""

    def slots(cores: int, gpus: tuple[str, ...] = (), **ensemble: int) -> list[tuple[str, str]]:
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)))
        changed = config.replace(ensemble=config.ensemble.replace(**ensemble))
        return [(slot.get("OMP_NUM_THREADS", ""), slot["CUDA_VISIBLE_DEVICES"]) for slot in build_slots(changed, gpus)]

    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert slots(2) == [("1", "")] * 2
    assert slots(2, max_parallel=3) == [("1", "")] * 3
    assert slots(12) == [("4", "")] * 3
    assert slots(12, max_parallel=1) == [("4", "")]
    assert slots(12, devices_per_member=2) == [("2", "")] * 3
    assert slots(8, ("0", "1", "2", "3"), devices_per_member=2) == [("", "0,1"), ("", "2,3")]
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert slots(12) == [("2", "")] * 3
    assert slots(2) == [("2", "")]
    with pytest.raises(ConfigError, match="2 GPUs a member, but this machine has 1"):
        slots(8, ("0",), devices_per_member=2)


def test_a_finished_member_is_not_trained_again_and_a_changed_one_is_rejected(config: Config, tmp_path: Path) -> None:
    folder = RunDir(tmp_path / "run")
    assert [job.name for job in build_pending_jobs(config, folder)] == ["a", "b", "c"]
    member = folder.member("b")
    member.store_config(member_config(config, "b"))
    (member.path / "result.json").write_text("{}")
    (member.path / "checkpoints" / "step-00000001").mkdir(parents=True)
    assert [job.name for job in build_pending_jobs(config, folder)] == ["a", "c"]
    (member.path / "config.yaml").write_text((member.path / "config.yaml").read_text().replace("seed: 5", "seed: 6"))
    with pytest.raises(ConfigError, match=r"members/b: holds a run of another config \(seed: 6 -> 5\)"):
        build_pending_jobs(config, folder)


def write_checkpoints(folder: RunDir, config: Config, *names: str) -> None:
    """Write the files that training these members leaves behind, as far as these tests need them."""
    folder.store_config(config)
    for name in names:
        folder.member(name).store_config(member_config(config, name))
        (folder.member(name).checkpoints / "step-00000001").mkdir(parents=True)


def test_a_run_can_get_more_members(config_file: Path, config: Config, tmp_path: Path) -> None:
    folder = RunDir(tmp_path / "run")
    write_checkpoints(folder, config, "a", "b")  # c has not come to a checkpoint
    (folder.member("a").path / "result.json").write_text("{}")
    a, b = "{name: a}", "{name: b, set: {seed: 5, train.lr: 1e-2}}"
    for members, left in (
        (f"{a}, {b}, {{name: c, set: {{data.image_size: 48}}}}, {{name: d, set: {{seed: 9}}}}", ["b", "c", "d"]),
        (f"{{name: d}}, {b}, {a}", ["d", "b"]),  # another order, and without c
        (f"{a}, {b}, {{name: c, set: {{seed: 7}}}}", ["b", "c"]),  # another c
    ):
        changed = load_config(config_file, [f"ensemble.members=[{members}]"])
        folder.check_same_config(changed)
        assert [job.name for job in build_pending_jobs(changed, folder)] == left
        folder.store_config(changed)


@pytest.mark.parametrize(
    ("members", "further", "message"),
    [
        ("{name: a}, {name: c}", "", r"ensemble.members: .*name='b'.* -> "),
        ("{name: a}, {name: b}, {name: c}", "", r"ensemble.members: .*train.lr.* -> "),
        ("{name: a}, {name: b, set: {seed: 5, train.lr: 1e-2}}, {name: d}", "train.epochs=3", r"train.epochs: .* -> 3"),
        ("{name: a}, {name: b, set: {seed: 5, train.lr: 1e-2}}", "ensemble.seeds=2", "ensemble.seeds: 0 -> 2"),
        ("{name: a}, {name: b, set: {seed: 5, train.lr: 1e-2}}", "ensemble.snapshots=2", "ensemble.snapshots: 0 -> 2"),
    ],
    ids=["without one", "one changed", "all changed", "renamed", "trained otherwise"],
)
def test_trained_members_cannot_change(
    config_file: Path, config: Config, tmp_path: Path, members: str, further: str, message: str
) -> None:
    folder = RunDir(tmp_path / "run")
    write_checkpoints(folder, config, "a", "b")
    changed = load_config(config_file, [f"ensemble.members=[{members}]", *([further] if further else [])])
    with pytest.raises(ConfigError, match=f"holds a run of another config .*{message}"):
        folder.check_same_config(changed)


def test_a_single_network_does_not_become_an_ensemble(config_file: Path, config: Config, tmp_path: Path) -> None:
    folder = RunDir(tmp_path / "run")
    folder.store_config(load_config(config_file))
    (folder.checkpoints / "step-00000001").mkdir(parents=True)
    with pytest.raises(ConfigError, match="holds a run of another config"):
        folder.check_same_config(config)


def test_more_seeds_are_more_members(config_file: Path, tmp_path: Path) -> None:
    folder, two, four = (
        RunDir(tmp_path / "run"),
        *(load_config(config_file, [f"ensemble.seeds={n}"]) for n in (2, 4)),
    )
    write_checkpoints(folder, two, "seed1", "seed2")
    assert [job.name for job in build_pending_jobs(four, folder)] == ["seed1", "seed2", "seed3", "seed4"]
    folder.store_config(four)
    with pytest.raises(ConfigError, match="members/seed2: holds a run of another config"):
        (folder.member("seed2").path / "config.yaml").write_text(
            (folder.member("seed1").path / "config.yaml").read_text()
        )
        build_pending_jobs(four, folder)


def test_one_member_fails_for_good_and_the_others_are_scored(config_file: Path, tmp_path: Path, choral: Choral) -> None:
    bad = "{name: bad, set: {model.name: vgg11, model.drop_path_rate: 0.1}}"  # which vgg11 does not accept
    members = f"ensemble.members=[{{name: good}}, {bad}, {{name: fine, set: {{seed: 1}}}}]"
    overrides = [members, "ensemble.retries=0", "train.steps=2", "evaluate.views=identity,hflip"]
    result = choral("run", config_file, *overrides)
    assert result.returncode == 1
    reason = r"failed: ConfigError: .*drop_path_rate.* \(log: runs/toy/members/bad/log.txt\)"
    assert re.search(f"^2 of 3 members; without bad: {reason}$", result.stderr, re.MULTILINE)
    assert re.search(f"2 of 3 members; without bad: {reason}", " ".join(result.stdout.split()))
    assert "Figure: runs/toy/diversity-test.svg" in result.stdout
    assert (tmp_path / "runs" / "toy" / "diversity-test.svg").is_file()
    score = choral("score", "toy", "--json")
    scores = json.loads(score.stdout)
    assert [row["name"] for row in scores["rows"][:4]] == ["member/good", "member/fine", "soft", "hard"]
    assert (scores["configured"], list(scores["missing_members"])) == (3, ["bad"])
    assert score.returncode == 0 and re.fullmatch(reason, scores["missing_members"]["bad"])
    again = choral("run", config_file, *overrides)  # retries only the failed member
    assert again.returncode == 1
    assert "good: " not in again.stderr


def test_two_processes_cannot_share_a_run_directory(config_file: Path, tmp_path: Path, choral: Choral) -> None:
    with RunDir(tmp_path / "runs" / "toy").lock():
        result = choral("train", config_file)
    assert result.returncode == 1
    assert f"in use by another process (host {os.uname().nodename}, pid {os.getpid()})" in result.stderr


def test_the_live_table_has_one_metric_for_each_task() -> None:
    assert _validation({"val_accuracy": 0.5, "val_log_loss": 0.7, "val_n": 13}) == "50.0% accuracy"
    assert _validation({"val_f1": 0.5, "val_mean_ap": 0.755}) == "75.5% mAP"
    assert _validation({"val_mae": 1.5, "val_rmse": 12.3456}) == "12.35 RMSE"
    assert _validation({"step": 1}) == ""


def test_the_live_table_has_the_progress_of_a_member(tmp_path: Path) -> None:
    member = RunDir(tmp_path)
    assert set(progress_columns(member.status).values()) == {""}
    member.write_status(
        state="running", step=40, steps=120, eta_s=83.4, loss=0.51234, images_per_s=65.6, val_accuracy=0.75
    )
    expected = {"step": "40/120", "loss": "0.512", "validation": "75.0% accuracy", "images/s": "66", "eta": "1:23"}
    assert progress_columns(member.status) == expected
