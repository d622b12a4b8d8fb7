"""The model card of a bundle: all that is known, in words that mean themselves, and code that runs."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from choral.data.loading.crop import Crop
from choral.data.loading.sample_pipeline import resize_and_crop
from choral.deploy.bundle.markdown import listed, plain
from choral.deploy.bundle.model_card import render_model_card
from choral.scoring.apply_policy import build_default_policy
from choral.scoring.policy import Conformal

HOSTILE = "<script>alert(1)</script> | `rm` **b** [x](http://y) $a$ \u202eabc\x1b[2J\n# head ~~s~~ a_b _c_ \\"
FULL = {"precision": "fp32", "megabytes": 14.0}
METRICS = {
    "multiclass": ("accuracy", "log_loss"),
    "multilabel": ("mean_ap", "f1", "log_loss"),
    "regression": ("rmse", "r2"),
}


def numbers(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.01, "high": value + 0.01}


def member(name: str, size: int, crop: str = "resized") -> dict[str, Any]:
    input_spec = {
        "size": size,
        "crop": crop,
        "crop_pct": 0.875,
        "resize": "antialias",
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
    }
    return {"name": name, "folder": f"members/{name}", "architecture": "test_vit", "look": input_spec}


def content_of(task: str = "multiclass", classes: tuple[str, ...] = ("x", "y")) -> dict[str, Any]:
    """Return what a bundle.json says, as far as the card needs it."""
    policy = build_default_policy(task, classes, ("a", "b"), ("identity", "hflip"))
    scores = {
        "val": {"n": 90, "chosen_on_it": True, "metrics": {name: numbers(0.5) for name in METRICS[task]}},
        "test": {"n": 1234, "chosen_on_it": False, "metrics": {name: numbers(0.25) for name in METRICS[task]}},
    }
    scores["test"]["by_class"] = {name: {"recall": numbers(0.7), "rmse": None} for name in classes}
    return {
        "name": "cells",
        "task": task,
        "classes": list(classes),
        "answer": {**policy.to_json(), "fitted_on": {"split": "val", "samples": 90}},
        "members": [member("a", 64), member("b", 96)],
        "inputs": [{"name": "images_64", "shape": ["batch", 64, 64, 3]}, {"name": "images_96", "shape": ["batch"]}],
        "forms": {},
        "scores": scores,
        "licences": {"data": "CC BY 4.0", "weights": ""},
        "provenance": {"run": "demo", "data": {"name": "cells", "samples": {"test": 1234}}, "software": {"torch": "2"}},
    }


@pytest.mark.parametrize("task", METRICS)
def test_the_card_of_each_task_says_what_was_measured(task: str) -> None:
    content = content_of(task)
    content["answer"]["conformal"] = {"score": "lac", "coverage": 0.9, "quantiles": [0.5], "samples": [90]}
    each = {"x": {**numbers(0.912), "n": 5}, "y": None}
    content["scores"]["test"]["sets"] = {"covered": numbers(0.912), "size": numbers(1.5), "each": each}
    if task != "multiclass":
        del content["scores"]["test"]["sets"]["covered"]
    text = render_model_card(content)
    first = text.index("### test: 1,234 samples")
    assert first < text.index("### val: 90 samples, on which weights and calibration were chosen")
    assert ("25.0 [24.0, 26.0]" if task != "regression" else "0.250 [0.240, 0.260]") in text[first:]
    assert re.search(r"On 1,234 images of test: \w+ 0?\.?25(\.0 %|0) \[", text[:first])
    assert "91.2 [90.2, 92.2] %" in text
    assert "- Data that it was trained on: CC BY 4.0\n- Weights that the training began with: not stated" in text
    assert "Mitchell et al. 2019" in text
    assert text.endswith("\n")
    assert not text.endswith("\n\n")


def test_views_that_count_differently_are_told_with_their_weights() -> None:
    content = content_of()
    content["answer"]["views"] = {"identity": 0.75, "hflip": 0.25}
    assert "2: identity (0.75), hflip (0.25)" in render_model_card(content)
    content["answer"]["views"] = {"identity": 0.5, "hflip": 0.5}
    assert "2: identity, hflip" in render_model_card(content)


def test_what_lower_precision_loses_is_said() -> None:
    content = content_of()
    assert "one file" not in render_model_card(content)
    measured = {"split": "val", "n": 90, "largest": 0.0123, "same": 89, "metric": "accuracy", "value": 0.75}
    measured |= {"reference": 0.76, "difference": [-0.01, -0.03, 0.002]}
    half = {"precision": "fp16", "megabytes": 7.04, "measured": measured}
    text = render_model_card({**content, "forms": {"model.onnx": FULL, "model-fp16.onnx": half}})
    assert "| `model.onnx` | fp32 | 14.0 | - | - | - | - |" in text
    row = "| `model-fp16.onnx` | fp16 | 7.0 | accuracy % 75.0 on val | -1.0 [-3.0, +0.2] | 89 of 90 | 1.2e-02 |"
    assert row in text
    unmeasured = {"precision": "int8", "megabytes": 4.0}
    card = render_model_card({**content, "forms": {"model-int8.onnx": unmeasured}})
    assert "| `model-int8.onnx` | int8 | 4.0 | - |" in card


def test_a_bundle_of_which_nothing_is_known_says_so() -> None:
    content = content_of()
    for key in ("scores", "licences", "provenance"):
        del content[key]
    text = render_model_card(content)
    assert "Nothing was measured" in text
    assert text.count("not stated") == 3
    assert "not calibrated" in text
    assert "### " not in text


def test_names_mean_themselves() -> None:
    content = content_of(classes=(HOSTILE, "y"))
    content["name"] = HOSTILE
    content["provenance"]["data"]["source"] = {"citation": HOSTILE}
    content["slices"] = {
        "split": "test",
        "columns": {HOSTILE: {"slices": [{"name": HOSTILE, "n": 3, "metrics": {"accuracy": {"score": numbers(0.5)}}}]}},
    }
    text = render_model_card(content)
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    assert "<script>" not in text
    assert "\u202e" not in text
    assert "\x1b" not in text
    assert not re.search(r"(?<!\\)\[x", prose)
    for line in prose.splitlines():
        if line.startswith("|"):  # a pipe in a name adds no cell
            bars = len(re.findall(r"(?<!\\)\|", line))
            assert bars in (3, 4, 6), line
    assert plain("a_b _c_ 50 % & more") == r"a_b \_c\_ 50 % &amp; more"
    assert listed(("a", "b", "c"), most=2) == "a, b and 1 more"


def run_example(text: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Mapping[str, NDArray[np.uint8]]:
    """Run the card's example for ONNX in a folder, and return what the session would have been given."""
    given: dict[str, NDArray[np.uint8]] = {}

    class Session:
        def __init__(self, path: str) -> None:
            assert path == "BUNDLE/model.onnx"

        def run(self, names: list[str], images: Mapping[str, NDArray[np.uint8]]) -> list[list[str]]:
            given.update(images)
            return [names]

    stand_in = ModuleType("onnxruntime")
    stand_in.InferenceSession = Session
    monkeypatch.setitem(sys.modules, "onnxruntime", stand_in)
    monkeypatch.chdir(folder)
    (example,) = [code for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "onnxruntime" in code]
    exec(compile(example, "README.md", "exec"), {})
    return given


@pytest.mark.parametrize("sides", [(200, 151), (151, 200), (97, 97)])
def test_the_example_for_onnx_prepares_images_as_choral_does(
    sides: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = content_of()
    content["members"] = [member("a", 64), member("b", 48, "center"), member("c", 64)]
    content["inputs"] = [{"name": name, "shape": []} for name in ("images_64", "images_48")]
    content["forms"] = {"model.onnx": FULL}
    smooth = np.random.default_rng(3).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    Image.fromarray(smooth).resize(sides, Image.Resampling.BICUBIC).save(tmp_path / "photo.png")
    (tmp_path / "photo.png").rename(tmp_path / "photo.jpg")
    given = run_example(render_model_card(content), tmp_path, monkeypatch)
    image = np.asarray(Image.open(tmp_path / "photo.jpg"))
    for name, crop in (("images_64", Crop("resized")), ("images_48", Crop("center", crop_pct=0.875))):
        own = np.empty((int(name[-2:]),) * 2 + (3,), np.uint8)
        resize_and_crop(image, crop, "antialias", own)
        assert given[name].dtype == np.uint8
        assert given[name].shape == (1, *own.shape)
        assert np.abs(given[name][0].astype(int) - own).max() <= 1


def test_all_code_in_a_card_compiles() -> None:
    content = {**content_of(classes=(HOSTILE, "y")), "forms": {"model.onnx": FULL}}
    blocks = re.findall(r"```python\n(.*?)```", render_model_card(content), re.DOTALL)
    assert len(blocks) == 3
    for code in blocks:
        compile(code, "README.md", "exec")


def test_the_card_is_made_of_json_alone() -> None:
    content = content_of()
    conformal = Conformal("lac", 0.9, (0.5,), (90,))
    content["answer"]["conformal"] = {"score": conformal.score, "coverage": conformal.coverage}
    assert render_model_card(json.loads(json.dumps(content))) == render_model_card(content)
