"""Probing is an evaluation: the same bits on any number of ranks, one decode for all, and what is finished is kept."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from choral.analysis.probe_curves import read_curves, read_probe_predictions
from choral.analysis.probes import plan as plan_module
from choral.analysis.probes.feature_sketch import FeatureSketch
from choral.analysis.probes.plan import plan_probes, probe_path, select_samples
from choral.analysis.probes.probe_pass import probe
from choral.cli import main
from choral.config import Config
from choral.config.files import load_config
from choral.core.errors import ConfigError
from choral.core.process_group import Runtime
from choral.data.loading import sample_pipeline as sample
from choral.data.loading.decode import decode
from choral.data.packing.options import PackOptions
from choral.data.packing.pack import pack
from choral.data.shards.index import Dataset
from choral.inference.evaluation_pass import evaluate
from choral.inference.ledger import Ledger
from choral.runs.run_dir import RunDir
from made_members import made_members
from thread_ranks import run_on_ranks

MEMBERS = "ensemble.members=[{name: a}, {name: b}, {name: c, set: {data.image_size: 40, data.eval_crop: center}}]"
SETTINGS = ["data.cache_gib=0", "evaluate.batch_size=3", "evaluate.checkpoint=last", "evaluate.splits=[val]"]
FAMILIES = ("noise", "rot90")  # with random choices


@pytest.fixture
def config(config_file: Path) -> Config:
    return load_config(config_file, [*SETTINGS, "evaluate.views=[identity]", MEMBERS])


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes in bytes of the images that were decoded."""
    seen: list[int] = []

    def counted(data: bytes, **options: object) -> object:
        seen.append(len(data))
        return decode(data, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(sample, "decode", counted)
    return seen


def probe_on_ranks(
    config: Config, folder: RunDir, ranks: int, stop_requested: Callable[[int], bool] = lambda rank: False
) -> list[BaseException]:
    return run_on_ranks(lambda run: probe(config, folder, run, "val", FAMILIES, force=True), ranks, stop_requested)


def test_ranks_and_stops_change_nothing(config: Config, tmp_path: Path, decoded: list[int], run: Runtime) -> None:
    """13 samples in 5 chunks, 4 changes, three members of two sizes and two normalisations."""
    folder = made_members(config, tmp_path / "run")
    path = probe_path(folder, "val")
    found = []
    for ranks in (1, 3):
        decoded.clear()
        assert probe_on_ranks(config, folder, ranks) == []
        assert len(decoded) == 13, "an image was decoded more than once, or not at all"
        found.append(path.read_bytes())
    assert found[0] == found[1]
    assert [item.name for item in path.parent.iterdir()] == ["val.parquet"]
    left = 3 * 5 + 1 + 4  # within the second chunk, of three looks and five views

    def stop_requested(rank: int) -> bool:
        nonlocal left
        left -= rank == 0
        return left <= 0

    assert len(probe_on_ranks(config, folder, 1, stop_requested)) == 1
    assert [part.name for part in path.parent.glob(".val.parts/*/part-*")] == ["part-000000000-000000001.arrow"]
    decoded.clear()
    assert probe_on_ranks(config, folder, 2) == [] and len(decoded) == 13 - 3
    assert path.read_bytes() == found[0]

    # Unchanged images get the mean of what the members say in an ordinary evaluation.
    evaluate(config, folder, run)
    ledger, probed = Ledger.open(folder.predictions / "val.parquet"), read_probe_predictions(folder, config, "val")
    assert probed is not None and probed.model == "soft" and probed.ledger.keys == ledger.keys
    said = np.mean([ledger.predictions(member) for member in ledger.members], axis=0)
    np.testing.assert_allclose(probed.predictions(None), said, atol=1e-6)
    assert len(probed.probes) == 3 + 1
    for one in probed.probes:
        assert np.abs(probed.predictions(one) - said).max() > 1e-4, one
        assert np.abs(probed.features(one) - probed.features(None)).max() > 1e-4, one
    curves = read_curves(folder, config, "val")
    assert curves is not None and curves.n == curves.total == 13
    assert [curve.family for curve in curves.curves] == ["noise", "rot90"]


def test_one_network_a_part_of_the_samples_and_further_families(config: Config, tmp_path: Path, run: Runtime) -> None:
    config = config.replace(ensemble=config.ensemble.replace(members=()))
    config = config.replace(analyze=config.analyze.replace(probe_samples=7))
    folder = made_members(config, tmp_path / "run")
    probe(config, folder, run, "val", ["hflip"])
    first = Ledger.open(probe_path(folder, "val"))
    assert first.members == ("member/model",) and first.meta.skipped == 6 and len(first) == 7
    dataset = Dataset.open(config.data.shards)
    assert plan_probes(config, folder, dataset, "val", ["hflip"]).is_done
    assert not plan_probes(config, folder, dataset, "val", ["hflip", "vflip"]).is_done
    probe(config, folder, run, "val", ["vflip"])
    both = Ledger.open(probe_path(folder, "val"))
    assert both.views == ("identity", "hflip@1", "vflip@1") and both.keys == first.keys
    assert np.array_equal(both.predictions("member/model", "hflip@1"), first.predictions("member/model", "hflip@1"))
    curves = read_curves(folder, config, "val")
    assert curves is not None and (curves.n, curves.total, curves.predictor) == (7, 13, "member/model")
    more = config.replace(analyze=config.analyze.replace(probe_samples=9))  # of other samples nothing is kept
    assert plan_probes(more, folder, dataset, "val", ["vflip"]).meta.views == ("identity", "vflip@1")
    probe(more, folder, run, "val", ["vflip"])
    assert set(first.keys) < set(Ledger.open(probe_path(folder, "val")).keys)


@pytest.mark.parametrize("task", ["multilabel", "regression"])
def test_other_tasks(photos: Path, tmp_path: Path, config_file: Path, run: Runtime, task: str) -> None:
    images = sorted(photos.glob("val/*/*.png"))
    values = [f"{number % 3 or ''};second" if task == "multilabel" else number / 4 for number in range(len(images))]
    rows = [f"{image},{value}" for image, value in zip(images, values, strict=True)]
    (tmp_path / "list.csv").write_text("\n".join(["image,label", *rows]) + "\n")
    options = PackOptions(task=task, targets=("label",) if task == "regression" else (), processes=1, val=0.5, test=0.1)
    packed = pack(str(tmp_path / "list.csv"), tmp_path / "packed", options)
    members = "ensemble.members=[{name: a}, {name: b}]"
    config = load_config(config_file, [*SETTINGS, f"task={task}", f"data.shards={packed.folder}", members])
    folder = made_members(config, tmp_path / "run")
    probe(config, folder, run, "val", ["hflip", "blur"])
    curves = read_curves(folder, config, "val")
    assert curves is not None and len(curves.curves) == 2 and curves.n == packed.splits["val"].samples
    assert (curves.predictor, curves.metric) == (("soft", "mean_ap") if task == "multilabel" else ("mean", "rmse"))


def test_samples_are_chosen_by_their_keys(monkeypatch: pytest.MonkeyPatch, config: Config, tmp_path: Path) -> None:
    keys = [f"key {number}" for number in range(1000)]
    chosen = {key for key, is_one in zip(keys, select_samples(keys, 100), strict=True) if is_one}
    assert len(chosen) == 100
    again = [key for key, is_one in zip(keys[::-1], select_samples(keys[::-1], 100), strict=True) if is_one]
    assert chosen == set(again) and select_samples(keys, 5000).all()
    assert abs(np.mean([int(key.split()[1]) for key in chosen]) - 500) < 100
    folder = made_members(config, tmp_path / "run")
    dataset = Dataset.open(config.data.shards)
    assert plan_probes(config, folder, dataset, "val", ["hflip"]).samples == 2000
    monkeypatch.setattr(plan_module, "MAX_LEDGER_BYTES", 4 * 3 * 2 * 5)  # three classes, with and without a flip
    assert plan_probes(config, folder, dataset, "val", ["hflip"]).samples == 5


def test_features_of_the_last_layer_keep_their_distances() -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Flatten(), nn.Linear(3 * 16 * 16, 4)

        def get_classifier(self) -> nn.Module:
            return self.head

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.head(self.body(images))
            return found

    torch.manual_seed(0)
    images, sketch = torch.rand(12, 3, 16, 16) - 0.5, FeatureSketch(64)
    network = Network().eval()
    with torch.inference_mode():
        logits, features = sketch(network, images)
        assert torch.equal(logits, network(images)) and torch.equal(features, images.flatten(1))
        kept = sketch.reduce("a", features)
    assert kept.shape == (12, 64) and torch.equal(kept, sketch.reduce("a", features))
    assert not torch.allclose(kept, sketch.reduce("b", features))
    unit = features / features.norm(dim=1, keepdim=True)
    exact, found = torch.cdist(unit, unit), torch.cdist(kept, kept)
    upper = exact > 0.1
    assert ((found / exact)[upper] - 1).abs().max() < 0.4 and ((found / exact)[upper] - 1).abs().mean() < 0.12


def test_the_command(
    config: Config, tmp_path: Path, run: Runtime, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ranks are started by a launcher, which other tests start; here they are this process."""
    from choral.analysis.probes.__main__ import main as rank_main
    from choral.cli.workflow import probes as workflow

    asked: list[list[str]] = []

    def launch(module: str, words: list[str], processes: int, folder: RunDir) -> int:
        assert module == "choral.analysis.probes"
        asked.append(words)
        return rank_main(words)

    monkeypatch.setattr(workflow, "launch", launch)
    monkeypatch.setattr("choral.core.process_group.Runtime", lambda *arguments: run)
    folder = made_members(config, tmp_path / "run")
    words = ["probe", str(folder.path), "--families", "hflip,darker", "analyze.probe_samples=10"]
    assert main([*words, "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["n"] == 10 and [curve["family"] for curve in content["curves"]] == ["darker", "hflip"]
    assert main(words) == 0
    said = capsys.readouterr()
    assert "soft on val, perturbed images: 10 of 13 samples" in said.out and "already been probed" in said.err
    assert max(map(len, said.out.splitlines())) <= 80
    assert len(asked) == 1
    assert main(["probe", str(folder.path), "--families", "rotated"]) == 2
    assert main(["probe", str(folder.path), "--split", "validation"]) == 1
    with pytest.raises(ConfigError, match="an evaluation changes"):
        main_request = workflow.ProbeRequest(folder, overrides=("train.lr=1",))
        main_request.config()
    assert main(["probe", str(folder.path), "--families", "hflip", "--json", "analyze.probe_samples=10"]) == 0
    some = json.loads(capsys.readouterr().out)  # what else was probed counts among the comparisons
    assert [curve["family"] for curve in some["curves"]] == ["hflip"] and some["comparisons"] == 5 and len(asked) == 1
