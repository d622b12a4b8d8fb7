"""Multilabel and regression, from a manifest to the prediction for an image."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from choral.cli import main
from choral.config import Config
from choral.config.files import load_config
from choral.core.process_group import Runtime
from choral.inference.evaluation_pass import evaluate
from choral.inference.ledger import Ledger
from choral.runs.run_dir import RunDir, write_json
from choral.scoring.policy import read_policy
from choral.training.loop import train

COLOURS = {"red": (220, 40, 40), "green": (40, 200, 60), "blue": (50, 60, 230)}
SHAPES = 240


def shapes_image(labels: list[str], seed: int) -> Image.Image:
    """Return 32 x 32 pixels of grey noise with a 12 x 12 square of each labelled colour in a different corner."""
    rng = np.random.default_rng(seed)
    pixels = rng.normal(120, 30, (32, 32, 3))
    corners = rng.permutation(4)[: len(labels)]
    for label, corner in zip(labels, corners, strict=True):
        top, left = 18 * (corner // 2) + rng.integers(2), 18 * (corner % 2) + rng.integers(2)
        pixels[top : top + 12, left : left + 12] = COLOURS[label] + rng.normal(0, 20, (12, 12, 3))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a packed directory of images with 0 to 3 squares; their number is a metadata column."""
    root = tmp_path_factory.mktemp("shapes")
    rng, lines = np.random.default_rng(0), ["image,label,squares"]
    for number in range(SHAPES):
        labels = [name for name in COLOURS if rng.random() < 0.4]
        shapes_image(labels, number).save(root / f"{number}.png")
        lines.append(f"{number}.png,{';'.join(labels)},{len(labels)}")
    (root / "list.csv").write_text("\n".join(lines) + "\n")
    arguments = ["pack", str(root / "list.csv"), str(root / "packed"), "--task", "multilabel", "--processes", "1"]
    assert main([*arguments, "--test", "0.2"]) == 0
    return root / "packed"


@pytest.fixture
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runtime:
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)  # Accelerate has one per process
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    torch.set_num_threads(1)
    return Runtime("no", 1, 60, tmp_path / "run" / "stop")


def trained(tmp_path: Path, packed: Path, runtime: Runtime, *overrides: str) -> tuple[Config, RunDir]:
    """Train and evaluate a small network; return its config and run directory."""
    (tmp_path / "config.yaml").write_text(
        f"data: {{shards: '{packed}', image_size: 32, eval_crop: resized}}\n"
        "model: {name: test_resnet, weights: none}\n"
        "augment: {crop_scale: [1, 1], hflip: 0.5}\n"
        "train: {steps: 60, batch_size: 24, lr: 1e-2, warmup_epochs: 0.5, eval_every_epochs: 3}\n"
        "tracking: {wandb: 'off'}\n"
    )
    config, folder = load_config(tmp_path / "config.yaml", overrides), RunDir(tmp_path / "run")
    folder.path.mkdir(exist_ok=True)
    with folder.lock():
        folder.store_config(config)
        train(config, folder, runtime)
        evaluate(config, folder, runtime)
    return config, folder


def read_scores(folder: RunDir, capsys: pytest.CaptureFixture[str]) -> dict[tuple[str, str], dict]:
    capsys.readouterr()
    assert main(["score", str(folder.path), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert all({"name", "metric", "value", "low", "high", "n"} <= row.keys() for row in rows)
    return {(row["name"], row["metric"]): row for row in rows}


def predict_images(folder: RunDir, images: list[Path], capsys: pytest.CaptureFixture[str]) -> list[dict]:
    assert main(["predict", str(folder.path), *map(str, images), "--json"]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_multilabel_from_a_manifest_to_a_prediction(
    packed: Path, tmp_path: Path, runtime: Runtime, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(packed)]) == 0
    assert main(["ls", str(packed)]) == 0
    assert "3 labels in" in capsys.readouterr().out
    _, folder = trained(tmp_path, packed, runtime, "task=multilabel", "train.class_weights=balanced")
    assert folder.result is not None and folder.result["mean_ap"] > 0.8
    ledger = Ledger.open(folder.predictions / "test.parquet")
    assert ledger.meta.task == "multilabel" and ledger.labels.shape == (48, 3)
    rows = read_scores(folder, capsys)
    assert rows["soft+tta", "mean_ap"]["value"] > 0.8 and rows["member/model", "f1"]["n"] == 48
    assert main(["score", str(folder.path)]) == 0
    assert "mAP %" in capsys.readouterr().out
    for name, labels in (("none", []), ("two", ["red", "blue"])):
        shapes_image(labels, 1000).save(tmp_path / f"{name}.png")
    none, two = predict_images(folder, [tmp_path / "none.png", tmp_path / "two.png"], capsys)
    assert none["labels"] == {} and set(two["labels"]) == {"red", "blue"}
    assert set(two["probabilities"]) == set(COLOURS) and "possible" not in two
    assert main(["calibrate", str(folder.path), "--threshold", "red:recall>=1", "--method", "vector"]) == 0
    capsys.readouterr()
    assert main(["predict", str(folder.path), str(tmp_path / "two.png"), str(tmp_path / "gone.png"), "--json"]) == 1
    printed = capsys.readouterr()
    assert "answer.json: member/model+tta; calibrated by vector; thresholds red from" in printed.err
    calibrated, gone = map(json.loads, printed.out.splitlines())
    kept = read_policy(folder)
    assert kept is not None and kept.views == {"identity": 0.5, "hflip": 0.5} and gone["error"] and not gone["labels"]
    plain = np.array([[list(two["probabilities"].values())]], np.float32)
    found = np.array(list(calibrated["probabilities"].values()))
    np.testing.assert_allclose(found, kept.combine(plain)[0], atol=1e-6)
    assert abs(found - plain[0, 0]).max() > 1e-4 and set(calibrated["possible"]) >= {"red", "blue"}
    write_json(folder.path / "answer.json", {**kept.to_json(), "evaluation": "of other weights"})
    assert main(["predict", str(folder.path), str(tmp_path / "two.png")]) == 1
    assert "answer.json: was fitted to other weights than the current ones" in capsys.readouterr().err


def test_regression_of_a_column_of_the_same_data(
    packed: Path, tmp_path: Path, runtime: Runtime, capsys: pytest.CaptureFixture[str]
) -> None:
    _, folder = trained(tmp_path, packed, runtime, "task=regression", "data.targets=squares", "train.loss=huber")
    rows = read_scores(folder, capsys)
    ledger = Ledger.open(folder.predictions / "test.parquet")
    errors = np.abs(ledger.predictions("model") - ledger.labels)
    assert rows["member/model", "mae"]["value"] == pytest.approx(errors.mean(), rel=1e-5)
    assert rows["mean+tta", "r2"]["value"] > 0.6  # a constant prediction has 0
    best = json.loads((folder.checkpoints / "best.json").read_text())
    assert best["metric"] == "r2"
    for name, labels in (("none", []), ("three", list(COLOURS))):
        shapes_image(labels, 1000).save(tmp_path / f"{name}.png")
    none, three = predict_images(folder, [tmp_path / "none.png", tmp_path / "three.png"], capsys)
    assert none["values"]["squares"] + 1 < three["values"]["squares"]
    assert three["spreads"] == {"squares": 0.0}
    assert main(["calibrate", str(folder.path), "--coverage", "0.8"]) == 0
    capsys.readouterr()
    (again,) = predict_images(folder, [tmp_path / "three.png"], capsys)
    low, high = again["intervals"]["squares"]
    assert (low + high) / 2 == pytest.approx(three["values"]["squares"], abs=1e-5) and low < high


@pytest.mark.parametrize("task", ["multilabel", "regression"])
def test_linear_heads_for_multilabel_and_regression(packed: Path, tmp_path: Path, runtime: Runtime, task: str) -> None:
    """Features of a network with random weights: the metric of the fit equals the validation metric of the network."""
    targets = ["data.targets=squares"] if task == "regression" else []
    _, folder = trained(tmp_path, packed, runtime, f"task={task}", "finetune.strategy=linear", *targets)
    result = folder.result
    assert result is not None and result["steps"] == 0 and result["head"] == "linear"
    ledger = Ledger.open(folder.predictions / "test.parquet")
    if task == "multilabel":
        assert result["head_val_log_loss"] == pytest.approx(result["log_loss"], rel=1e-4)
        assert result["mean_ap"] > 0.6  # chance is 0.4
    else:
        numbers = ledger.predictions("model", "identity")[:, 0]
        assert np.corrcoef(numbers, np.asarray(ledger.labels).reshape(-1))[0, 1] > 0.5
        assert result["r2"] > 0.2 and result["head_val_rmse"] < 1
