"""The JSON schema of config files: it is up to date, accepts what is read, and rejects what editors should mark."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from choral.cli import main
from choral.config.schema import build_json_schema

CONFIGS = Path(__file__).parents[2] / "configs"
SCHEMA = build_json_schema()


def errors_in(text: str) -> list[str]:
    """Return the dotted keys with errors, of values as YAML types them, else of values as strings."""
    return [
        ".".join(map(str, error.absolute_path))
        for loader in (yaml.SafeLoader, yaml.BaseLoader)
        for error in jsonschema.Draft202012Validator(SCHEMA).iter_errors(yaml.load(text, loader))
    ]


def test_the_file_beside_the_configs_is_what_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exited:
        main(["config", "--schema"])
    assert exited.value.code == 0
    assert capsys.readouterr().out == (CONFIGS / "schema.json").read_text(encoding="utf-8"), (
        "update it: choral config --schema > configs/schema.json"
    )
    jsonschema.Draft202012Validator.check_schema(json.loads((CONFIGS / "schema.json").read_text(encoding="utf-8")))


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_shipped_configs_are_valid(path: Path) -> None:
    assert errors_in(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "text",
    [
        "base: default.yaml",
        "train: {lr: 3e-4, steps: 1e3, max_grad_norm: null, accumulate_steps: auto}",
        "train: {lr: auto, precision: 'no', max_grad_norm: none, warmup_epochs: .5}",
        "model: {name: resnet18, sync_batchnorm: yes, channels_last: false}",
        "stages: all",
        "evaluate: {views: 'identity,d4', keep_views: auto, batch_size: auto}",
        "augment: {preset: heavy, zoom: [0.9, 1.1], host: [{name: CLAHE, arguments: {clip_limit: 4}}]}",
        "ensemble: {members: [{name: a, set: {train.lr: 1e-3}}], grid: {train.lr: [1e-3, 3e-4]}, folds: 3}",
        "tune: {space: {train.lr: {low: 1e-5, high: 1e-2, log: true}, train.optimizer: [adamw, sgd]}}",
        "references: [{name: SVM, value: 0.8244, source: a paper}]",
    ],
)
def test_what_files_may_write_is_valid(text: str) -> None:
    assert errors_in(text) == []


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("trian: {}", ""),
        ("train: {learning_rate: 1e-3}", "train"),
        ("train: {lr: fast}", "train.lr"),
        ("train: {schedule: cosin}", "train.schedule"),
        ("augment: {zoom: 1.1}", "augment.zoom"),
        ("references: [{name: SVM}]", "references.0"),
    ],
)
def test_mistakes_are_marked(text: str, key: str) -> None:
    found = errors_in(text)
    assert found and set(found) == {key}


def test_every_field_has_a_description() -> None:
    sections: dict[str, Any] = {"Config": SCHEMA, **SCHEMA["$defs"]}
    missing = [
        f"{name}.{key}"
        for name, section in sections.items()
        for key, field in section["properties"].items()
        if "description" not in field and "$ref" not in field
    ]
    assert missing == []
