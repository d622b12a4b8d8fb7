"""What can be evaluated: a run, several runs and checkpoints as one ensemble, and data that are not the run's own."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import numpy as np
import pytest

from choral.cli import main
from choral.config import Config
from choral.config.files import load_config
from choral.core.errors import ChoralError, ConfigError, DataError
from choral.core.process_group import Runtime
from choral.data.packing.options import PackOptions
from choral.data.packing.pack import pack
from choral.ensembles.missing_members import absent_from, absent_members
from choral.inference import assembled_run as assembled
from choral.inference.evaluation_pass import evaluate
from choral.inference.evaluation_request import Request, add_arguments, request_of
from choral.inference.external_data import index_of
from choral.inference.ledger import Ledger
from choral.inference.trained_models import find_trained_models
from choral.runs.run_dir import RunDir
from made_members import made_members

SETTINGS = [
    "evaluate.views=[hflip]",
    "evaluate.batch_size=8",
    "evaluate.splits=[val]",
    "evaluate.checkpoint=last",
]


@pytest.fixture
def config(config_file: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.chdir(config_file.parent)
    return load_config(config_file, SETTINGS)


def asked(*words: str) -> Request:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return request_of(parser.parse_intermixed_args(words))


def evaluated(request: Request, run: Runtime) -> RunDir:
    evaluate(request.config(), request.folder, run, request.force, request.data_name)
    return request.folder


def two_runs(config: Config) -> None:
    """Leave runs/solo, one network, and runs/duo, of two members."""
    made_members(load_config_with(config, "solo"), Path("runs/solo"))
    made_members(load_config_with(config, "duo", "ensemble.members=[{name: a}, {name: b}]"), Path("runs/duo"))


def load_config_with(config: Config, name: str, *overrides: str) -> Config:
    return load_config("toy.yaml", [*SETTINGS, f"run={name}", *overrides])


def test_runs_and_checkpoints_become_one_ensemble(config: Config, run: Runtime) -> None:
    two_runs(config)
    targets = ["solo", "runs/duo", "runs/duo/members/b/checkpoints/step-00000001"]
    folder = evaluated(asked(*targets, "--split", "test,val", "--views", "identity,hflip"), run)
    assert folder.path == Path("runs/solo-duo-duo-b-step-00000001")
    names = ("solo", "duo-a", "duo-b", "duo-b-step-00000001")
    for split, count in (("test", 11), ("val", 13)):
        ledger = Ledger.open(folder.predictions / f"{split}.parquet")
        assert ledger.members == names and ledger.views == ("identity", "hflip", "tta") and len(ledger) == count
        assert np.array_equal(ledger.predictions("duo-b"), ledger.predictions("duo-b-step-00000001"))
        assert not np.array_equal(ledger.predictions("duo-a"), ledger.predictions("duo-b"))
    alone = Ledger.open(
        evaluated(asked("solo", "--split", "test", "--views", "identity"), run).predictions / "test.parquet"
    )
    assert np.array_equal(
        alone.predictions("model"), Ledger.open(folder.predictions / "test.parquet").predictions("solo")
    )
    assert absent_members(folder, folder.config()) == {} == absent_from(names, folder, folder.config())
    assert main(["score", folder.name, "--json"]) == 0 and main(["combine", folder.name, "--rule", "weighted"]) == 0
    assert main(["combine", folder.name, "--rule", "geometric"]) == 0


def test_an_assembled_run_knows_what_it_is_made_of(config: Config, run: Runtime) -> None:
    two_runs(config)
    folder = asked("solo", "duo", "--name", "all").folder
    before = [model.weights_hash for model in find_trained_models(folder, folder.config())[0]]
    assert asked("solo", "duo", "--name", "all").folder == folder
    with pytest.raises(ConfigError, match=r"runs/all is assembled of .*solo, .*duo; choose another name for duo, solo"):
        asked("duo", "solo", "--name", "all")
    with pytest.raises(ConfigError, match="runs/duo is a run that was trained; choose another name"):
        asked("solo", "duo", "--name", "duo")
    with pytest.raises(ConfigError, match="no run name"):
        asked("solo", "duo", "--name", "a/b")
    shutil.rmtree("runs/solo")
    made_members(load_config_with(config, "solo", "seed=7"), Path("runs/solo"))
    with pytest.raises(ChoralError, match="solo: .*step-00000001 holds other weights than when it was assembled"):
        find_trained_models(folder, folder.config())
    asked("solo", "duo", "--name", "all")
    after = [model.weights_hash for model in find_trained_models(folder, folder.config())[0]]
    assert after[0] != before[0] and after[1:] == before[1:]


@pytest.mark.parametrize("after", ["voices.json", "config.yaml"])
def test_ranks_assemble_at_the_same_time(config: Config, monkeypatch: pytest.MonkeyPatch, after: str) -> None:
    """`accelerate launch launch/evaluate.py A B` assembles on each rank: another one may look between any two steps."""
    two_runs(config)
    place, name = (assembled, "write_json") if after == "voices.json" else (RunDir, "claim")
    writing = getattr(place, name)

    def wrote(*arguments: object) -> None:
        writing(*arguments)
        with monkeypatch.context() as patch:
            patch.setattr(place, name, writing)
            asked("solo", "duo", "--name", "all")

    monkeypatch.setattr(place, name, wrote)
    folder = asked("solo", "duo", "--name", "all").folder
    assert len(find_trained_models(folder, folder.config())[0]) == 3


def test_two_runs_of_one_name(config: Config) -> None:
    two_runs(config)
    shutil.copytree("runs/solo", "elsewhere/solo")
    folder = asked("solo", "elsewhere/solo").folder
    assert [model.name for model in find_trained_models(folder, folder.config())[0]] == ["solo-model", "solo-model-2"]


def test_what_cannot_be_evaluated(config: Config, tmp_path: Path) -> None:
    two_runs(config)
    with pytest.raises(ConfigError, match="nowhere: no such run. Known runs: duo, solo"):
        asked("nowhere")
    (tmp_path / "model.choral").write_text("a bundle")
    with pytest.raises(ConfigError, match=r"model\.choral: neither a run .* nor a checkpoint .* nor a bundle"):
        asked("solo", str(tmp_path / "model.choral"))
    shutil.copytree("runs/solo/checkpoints/step-00000001", "alone/step-00000001")
    with pytest.raises(ConfigError, match="a checkpoint says nothing of its network's architecture"):
        asked("solo", "alone/step-00000001")
    with pytest.raises(ConfigError, match="expected a run, a checkpoint or a bundle"):
        asked("evaluate.views=d4")
    (Path("runs/solo") / "result.json").unlink()
    with pytest.raises(ChoralError, match="no member has finished training"):
        asked("solo", "duo")
    with pytest.raises(ConfigError, match="an evaluation changes"):
        asked("duo", "train.lr=1").config()


def test_other_data_have_a_ledger_of_their_own(
    config: Config, run: Runtime, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    two_runs(config)
    own = evaluated(asked("duo", "--split", "test"), run).predictions / "test.parquet"
    before = own.read_bytes()
    pack(str(photos), Path("march"), PackOptions(samples_per_shard=5, processes=1))
    folder = evaluated(asked("duo", "--data", "march", "--split", "test"), run)
    other = Ledger.open(folder.predictions / "test@march.parquet")
    assert own.read_bytes() == before and other.meta.split == "test@march"
    assert np.array_equal(other.predictions("a", "hflip"), Ledger.open(own).predictions("a", "hflip")), (
        "the same images"
    )
    evaluated(asked("duo", "--data", "customers=march", "--split", "test,val"), run)
    assert sorted(path.name for path in folder.predictions.iterdir()) == [
        *("data.json", "test.parquet", "test@customers.parquet", "test@march.parquet", "val@customers.parquet")
    ]
    assert main(["score", "duo", "--split", "test@customers", "--json"]) == 0
    assert '"split": "test@customers"' in capsys.readouterr().out
    assert index_of(folder, folder.config(), "test@march").dataset.folder == Path("march").absolute()
    shutil.copytree(config.data.shards, "moved")  # the run's own, elsewhere
    evaluated(asked("duo", "--data", "moved", "--split", "test", "--force"), run)
    assert own.read_bytes() == before
    shutil.rmtree("march")
    pack(str(photos), Path("march"), PackOptions(samples_per_shard=4, processes=1))
    with pytest.raises(
        ConfigError, match=r"'march' has been .*march, and holds other data; give these a name: --data NAME="
    ):
        evaluated(asked("duo", "--data", "march", "--split", "test"), run)
    with pytest.raises(DataError, match="holds other data than those that were evaluated as 'march'"):
        index_of(folder, folder.config(), "test@march")


def test_the_data_of_an_assembled_run_are_those_it_was_assembled_for(
    config: Config, run: Runtime, photos: Path
) -> None:
    two_runs(config)
    pack(str(photos), Path("march"), PackOptions(samples_per_shard=5, processes=1))
    folder = evaluated(asked("solo", "duo", "--data", "march", "--split", "test", "--name", "all"), run)
    assert (folder.predictions / "test.parquet").is_file()
    assert folder.config().data.shards == "march"
    evaluated(asked("solo", "duo", "--split", "test", "--name", "all"), run)
    assert [path.name for path in folder.predictions.glob("*.parquet")] == ["test.parquet"]
    before = (folder.predictions / "test.parquet").read_bytes()
    evaluated(asked("all", "--data", f"trained={config.data.shards}", "--split", "test"), run)
    assert (folder.predictions / "test.parquet").read_bytes() == before
    assert Ledger.open(folder.predictions / "test@trained.parquet").meta.split == "test@trained"
