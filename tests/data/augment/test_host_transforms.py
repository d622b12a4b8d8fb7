"""Albumentations transforms: errors are detected early, and any worker gives the same bits."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from choral.config.augment import HostTransform, parse_untyped
from choral.config.files import load_config
from choral.core.errors import ChoralError, ConfigError
from choral.data.augment.host_transforms import HostTransforms, check_host_transforms
from choral.training.preflight import preflight
from image_bytes import photo

TRANSFORMS = (
    HostTransform(name="CLAHE", arguments={"clip_limit": "4", "tile_grid_size": ["4", "4"], "p": "0.5"}),
    HostTransform(name="ElasticTransform", arguments={"alpha": 5, "sigma": 3.0, "p": 0.7}),
    HostTransform(name="GaussNoise", arguments={"p": "1"}),
)
ROWS = np.arange(12)


def changed(transforms: HostTransforms, epoch: int, rows: np.ndarray) -> np.ndarray:
    images = np.stack([photo(32, 32, seed=int(row)) for row in rows])
    for image, seeds in zip(images, transforms.seeds(epoch, rows), strict=True):
        transforms.apply(image, seeds)
    return images


def test_a_sample_depends_on_seed_epoch_and_row_alone() -> None:
    transforms = HostTransforms(TRANSFORMS, 5)
    whole = changed(transforms, 2, ROWS)
    np.testing.assert_array_equal(changed(pickle.loads(pickle.dumps(transforms)), 2, ROWS[::-1]), whole[::-1])
    np.testing.assert_array_equal(changed(transforms, 2, ROWS[3:4]), whole[3:4])
    for other in (changed(transforms, 3, ROWS), changed(HostTransforms(TRANSFORMS, 6), 2, ROWS)):
        assert (other != whole).any((1, 2, 3)).all()


def test_probabilities_are_respected() -> None:
    transforms = HostTransforms([HostTransform(name="InvertImg", arguments={"p": "0.3"})], 1)
    rows = np.arange(600)
    images = np.zeros((600, 4, 4, 3), np.uint8)
    for image, seeds in zip(images, transforms.seeds(0, rows), strict=True):
        transforms.apply(image, seeds)
    assert abs((images[:, 0, 0, 0] == 255).mean() - 0.3) < 0.06


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("4", 4),
        ("-1.5e-3", -0.0015),
        ("true", True),
        ("False", False),
        ("null", None),
        ("None", None),
        ("~", None),
        ("nan", "nan"),
        ("-Inf", "-Inf"),
        ("1e400", "1e400"),
        ("gaussian", "gaussian"),
        (["1", ["2.5", "x"]], (1, (2.5, "x"))),
        ({"a": "1"}, {"a": 1}),
        (3.5, 3.5),
    ],
)
def test_strings_are_parsed_to_values(text: Any, value: Any) -> None:
    assert parse_untyped(text) == value and type(parse_untyped(text)) is type(value)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("ClAHE", {}, r"augment\.host\[0\]\.name: Albumentations has no transform 'ClAHE'\. Did you mean CLAHE"),
        ("Compose", {}, "no transform 'Compose'"),
        ("ImageOnlyTransform", {}, "no transform 'ImageOnlyTransform'"),
        ("CLAHE", {"clip_limt": 3}, r"arguments\.clip_limt: CLAHE has no such argument\. Did you mean clip_limit\?"),
        ("CLAHE", {"wrong": 3}, "It takes clip_limit, tile_grid_size, p"),
        ("CLAHE", {"clip_limit": "abc"}, "arguments: CLAHE: .*valid number"),
        ("CLAHE", {"p": "1.5"}, "arguments: CLAHE: p: Input should be less than or equal to 1"),
        ("RandomCrop", {}, "arguments: RandomCrop: height: Field required"),
        ("RandomCrop", {"height": 8, "width": 8}, r"RandomCrop.*\(8, 8, 3\), uint8\. Expected a transform that"),
        ("Normalize", {"p": "0"}, r"to \(32, 32, 3\), float32"),
        ("ToTensorV2", {}, r"to \(3, 32, 32\), torch.uint8"),
        ("MaskDropout", {}, "MaskDropout.*mask"),
        ("BBoxSafeRandomCrop", {}, "BBoxSafeRandomCrop.*bboxes"),
        ("HistogramMatching", {}, "hm_metadata"),
    ],
)
def test_invalid_transforms_are_refused(name: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_host_transforms([HostTransform(name=name, arguments=arguments)], 32)


def test_valid_transforms_are_accepted() -> None:
    check_host_transforms([*TRANSFORMS, HostTransform(name="RandomResizedCrop", arguments={"size": ["32", "32"]})], 32)


def test_a_transform_that_fails_in_a_worker_is_named() -> None:
    transforms = HostTransforms([HostTransform(name="RandomCrop", arguments={"height": 32, "width": 32, "p": 1})], 0)
    with pytest.raises(ChoralError, match=r"augment\.host\[0\] \(RandomCrop\): "):
        transforms.apply(photo(16, 16), transforms.seeds(0, ROWS)[0])


def test_invalid_transforms_are_detected_before_training(shards: Path, tmp_path: Path) -> None:
    file = tmp_path / "wrong.yaml"
    file.write_text(
        f"data: {{shards: '{shards}', image_size: 32}}\ntrain: {{batch_size: 4}}\n"
        "augment: {host: [{name: CLAHE, arguments: {clip_limit: 2}}, {name: Bluur}]}\n"
    )
    with pytest.raises(ConfigError, match=r"augment\.host\[1\]\.name: .*'Bluur'\. Did you mean Blur"):
        preflight(load_config(file))


def test_albumentations_is_imported_only_if_needed() -> None:
    code = (
        "import sys, choral.data.loading.input_pipeline, choral.data.augment.host_transforms as h, choral.training.__main__\n"
        "h.check_host_transforms((), 32)\n"
        "sys.exit('albumentations' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
