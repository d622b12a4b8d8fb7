"""Targets of an evaluation: a run, several runs and checkpoints as one ensemble, and other data than the run's own."""

from __future__ import annotations

import argparse
import json
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
from choral.ensembles.missing_members import find_missing_columns, find_missing_members
from choral.inference import assembled_run
from choral.inference.evaluation_pass import evaluate
from choral.inference.evaluation_request import EvaluationRequest, add_arguments, build_request
from choral.inference.external_data import open_ledger_index
from choral.inference.ledger import Ledger
from choral.inference.models_file import is_assembled, read_targets
from choral.inference.run_models import find_trained_models
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


def build(*words: str) -> EvaluationRequest:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return build_request(parser.parse_intermixed_args(words))


def evaluated(request: EvaluationRequest, run: Runtime) -> RunDir:
    evaluate(request.config(), request.run_dir, run, request.force, request.data_name)
    return request.run_dir


def two_runs(config: Config) -> None:
    """Make runs/solo, with one model, and runs/duo, with two members."""
    made_members(load_config_with(config, "solo"), Path("runs/solo"))
    made_members(load_config_with(config, "duo", "ensemble.members=[{name: a}, {name: b}]"), Path("runs/duo"))


def load_config_with(config: Config, name: str, *overrides: str) -> Config:
    return load_config("toy.yaml", [*SETTINGS, f"run={name}", *overrides])


def test_runs_and_checkpoints_become_one_ensemble(config: Config, run: Runtime) -> None:
    two_runs(config)
    targets = ["solo", "runs/duo", "runs/duo/members/b/checkpoints/step-00000001"]
    folder = evaluated(build(*targets, "--split", "test,val", "--views", "identity,hflip"), run)
    assert folder.path == Path("runs/solo-duo-duo-b-step-00000001")
    names = ("solo", "duo-a", "duo-b", "duo-b-step-00000001")
    for split, count in (("test", 11), ("val", 13)):
        ledger = Ledger.open(folder.predictions / f"{split}.parquet")
        assert ledger.members == names and ledger.views == ("identity", "hflip", "tta") and len(ledger) == count
        assert np.array_equal(ledger.predictions("duo-b"), ledger.predictions("duo-b-step-00000001"))
        assert not np.array_equal(ledger.predictions("duo-a"), ledger.predictions("duo-b"))
    alone = Ledger.open(
        evaluated(build("solo", "--split", "test", "--views", "identity"), run).predictions / "test.parquet"
    )
    assert np.array_equal(
        alone.predictions("model"), Ledger.open(folder.predictions / "test.parquet").predictions("solo")
    )
    assert find_missing_members(folder, folder.config()) == {} == find_missing_columns(names, folder, folder.config())
    assert main(["score", folder.name, "--json"]) == 0 and main(["combine", folder.name, "--rule", "weighted"]) == 0
    assert main(["combine", folder.name, "--rule", "geometric"]) == 0


def test_assembled_run_records_its_targets_and_weights(config: Config, run: Runtime) -> None:
    two_runs(config)
    folder = build("solo", "duo", "--name", "all").run_dir
    before = [model.weights_hash for model in find_trained_models(folder, folder.config())[0]]
    assert build("solo", "duo", "--name", "all").run_dir == folder
    with pytest.raises(
        ConfigError, match=r"runs/all was assembled from .*solo, .*duo; choose another name for duo, solo"
    ):
        build("duo", "solo", "--name", "all")
    with pytest.raises(ConfigError, match="runs/duo is a run that was trained; choose another name"):
        build("solo", "duo", "--name", "duo")
    with pytest.raises(ConfigError, match="not a valid run name"):
        build("solo", "duo", "--name", "a/b")
    shutil.rmtree("runs/solo")
    made_members(load_config_with(config, "solo", "seed=7"), Path("runs/solo"))
    with pytest.raises(ChoralError, match="solo: .*step-00000001 holds other weights than when the run was assembled"):
        find_trained_models(folder, folder.config())
    build("solo", "duo", "--name", "all")
    after = [model.weights_hash for model in find_trained_models(folder, folder.config())[0]]
    assert after[0] != before[0] and after[1:] == before[1:]


@pytest.mark.parametrize("after", ["models.json", "config.yaml"])
def test_ranks_can_assemble_at_the_same_time(config: Config, monkeypatch: pytest.MonkeyPatch, after: str) -> None:
    """`accelerate launch launch/evaluate.py A B` assembles on each rank, so another rank may read between any two writes."""
    two_runs(config)
    place, name = (assembled_run, "write_models_file") if after == "models.json" else (RunDir, "store_config")
    writing = getattr(place, name)

    def wrote(*arguments: object) -> None:
        writing(*arguments)
        with monkeypatch.context() as patch:
            patch.setattr(place, name, writing)
            build("solo", "duo", "--name", "all")

    monkeypatch.setattr(place, name, wrote)
    folder = build("solo", "duo", "--name", "all").run_dir
    assert len(find_trained_models(folder, folder.config())[0]) == 3


def test_voices_json_of_choral_0_1_is_still_read(config: Config, run: Runtime) -> None:
    """It has other names for the file, the format and the key; evaluating the same targets again writes models.json."""
    two_runs(config)
    folder = build("solo", "duo", "--name", "all").run_dir
    before, _ = find_trained_models(folder, folder.config())
    content = json.loads((folder.path / "models.json").read_text())
    assert content["format"] == "choral-models-1"
    old = {"format": "choral-voices-1", "targets": content["targets"], "voices": content["models"]}
    (folder.path / "voices.json").write_text(json.dumps(old))
    (folder.path / "models.json").unlink()
    assert is_assembled(folder) and read_targets(folder) == content["targets"]
    after, unfinished = find_trained_models(folder, folder.config())
    assert after == before and not unfinished
    ledger = evaluated(build("all", "--split", "test"), run).predictions / "test.parquet"
    assert Ledger.open(ledger).members == tuple(model.name for model in before)
    with pytest.raises(ConfigError, match="runs/all was assembled from"):
        build("duo", "solo", "--name", "all")
    assert build("solo", "duo", "--name", "all").run_dir == folder
    assert json.loads((folder.path / "models.json").read_text()) == content
    (folder.path / "models.json").write_text('{"format": "something else"}')
    with pytest.raises(ChoralError, match="models.json: damaged; delete .*runs/all and evaluate its targets again"):
        find_trained_models(folder, folder.config())


def test_two_runs_with_equal_names(config: Config) -> None:
    two_runs(config)
    shutil.copytree("runs/solo", "elsewhere/solo")
    folder = build("solo", "elsewhere/solo").run_dir
    assert [model.name for model in find_trained_models(folder, folder.config())[0]] == ["solo-model", "solo-model-2"]


def test_invalid_targets_are_refused(config: Config, tmp_path: Path) -> None:
    two_runs(config)
    with pytest.raises(ConfigError, match="nowhere: no such run. Known runs: duo, solo"):
        build("nowhere")
    (tmp_path / "model.choral").write_text("a bundle")
    with pytest.raises(ConfigError, match=r"model\.choral: neither a run .* nor a checkpoint .* nor a bundle"):
        build("solo", str(tmp_path / "model.choral"))
    shutil.copytree("runs/solo/checkpoints/step-00000001", "alone/step-00000001")
    with pytest.raises(ConfigError, match="a checkpoint does not define its model.s architecture"):
        build("solo", "alone/step-00000001")
    with pytest.raises(ConfigError, match="expected a run, a checkpoint or a bundle"):
        build("evaluate.views=d4")
    (Path("runs/solo") / "result.json").unlink()
    with pytest.raises(ChoralError, match="no member has finished training"):
        build("solo", "duo")
    with pytest.raises(ConfigError, match="an evaluation changes"):
        build("duo", "train.lr=1").config()


def test_other_data_have_their_own_ledger(
    config: Config, run: Runtime, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    two_runs(config)
    own = evaluated(build("duo", "--split", "test"), run).predictions / "test.parquet"
    before = own.read_bytes()
    pack(str(photos), Path("march"), PackOptions(samples_per_shard=5, processes=1))
    folder = evaluated(build("duo", "--data", "march", "--split", "test"), run)
    other = Ledger.open(folder.predictions / "test@march.parquet")
    assert own.read_bytes() == before and other.meta.split == "test@march"
    assert np.array_equal(other.predictions("a", "hflip"), Ledger.open(own).predictions("a", "hflip")), (
        "the same images"
    )
    evaluated(build("duo", "--data", "customers=march", "--split", "test,val"), run)
    assert sorted(path.name for path in folder.predictions.iterdir()) == [
        *("data.json", "test.parquet", "test@customers.parquet", "test@march.parquet", "val@customers.parquet")
    ]
    assert main(["score", "duo", "--split", "test@customers", "--json"]) == 0
    assert '"split": "test@customers"' in capsys.readouterr().out
    assert open_ledger_index(folder, folder.config(), "test@march").dataset.folder == Path("march").absolute()
    shutil.copytree(config.data.shards, "moved")  # the run's own, elsewhere
    evaluated(build("duo", "--data", "moved", "--split", "test", "--force"), run)
    assert own.read_bytes() == before
    shutil.rmtree("march")
    pack(str(photos), Path("march"), PackOptions(samples_per_shard=4, processes=1))
    with pytest.raises(
        ConfigError, match=r"the name 'march' already stands for other data, .*march; choose another one: --data NAME="
    ):
        evaluated(build("duo", "--data", "march", "--split", "test"), run)
    with pytest.raises(DataError, match="holds other data than were evaluated as 'march'"):
        open_ledger_index(folder, folder.config(), "test@march")


def test_assembled_run_keeps_its_data(config: Config, run: Runtime, photos: Path) -> None:
    two_runs(config)
    pack(str(photos), Path("march"), PackOptions(samples_per_shard=5, processes=1))
    folder = evaluated(build("solo", "duo", "--data", "march", "--split", "test", "--name", "all"), run)
    assert (folder.predictions / "test.parquet").is_file()
    assert folder.config().data.shards == "march"
    evaluated(build("solo", "duo", "--split", "test", "--name", "all"), run)
    assert [path.name for path in folder.predictions.glob("*.parquet")] == ["test.parquet"]
    before = (folder.predictions / "test.parquet").read_bytes()
    evaluated(build("all", "--data", f"trained={config.data.shards}", "--split", "test"), run)
    assert (folder.predictions / "test.parquet").read_bytes() == before
    assert Ledger.open(folder.predictions / "test@trained.parquet").meta.split == "test@trained"
