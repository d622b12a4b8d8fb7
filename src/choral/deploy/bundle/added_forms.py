"""Exported files of a bundle (ONNX, torch.export): written beside its models, checked, and measured in lower precision."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from choral.core.errors import ChoralError, ConfigError, DataError, did_you_mean
from choral.deploy.bundle.forms import open_form
from choral.deploy.bundle.forms.low_precision import write_int8
from choral.deploy.bundle.forms.onnx_form import check_installed, write_onnx
from choral.deploy.bundle.forms.program import build_metadata, export_program
from choral.deploy.bundle.forms.pt2_form import write_pt2
from choral.deploy.bundle.golden import FOLDER, read_golden, write_form_predictions
from choral.deploy.bundle.graph import EnsembleGraph, TorchEngine
from choral.deploy.bundle.predictor import FORM_FILES, load_member
from choral.deploy.bundle.read import Bundle, read_bundle, update_bundle
from choral.deploy.bundle.split_predictions import compare_predictions, predict_split
from choral.deploy.bundle.verify import TOLERANCE, compare_with_reference

_log = logging.getLogger(__name__)
PRECISIONS = {"fp16": "model-fp16.onnx", "int8": "model-int8.onnx"}
"""Lower precisions of the ONNX file, and the names of their files."""


def check_formats(formats: Sequence[str], precisions: Sequence[str]) -> None:
    """Raise ConfigError where formats or precisions are none, or their packages are not installed."""
    for name in formats:
        if name not in FORM_FILES:
            raise ConfigError(f"--format: no format '{name}'.{did_you_mean(name, FORM_FILES)} There are: onnx, pt2")
    for name in precisions:
        if name not in PRECISIONS:
            raise ConfigError(f"--precision: no '{name}'.{did_you_mean(name, PRECISIONS)} There are: fp16, int8")
    if precisions and "onnx" not in formats:
        raise ConfigError("--precision: is of ONNX files; add --format onnx")
    if "onnx" in formats:
        check_installed()


def add_forms(
    path: Path,
    formats: Sequence[str],
    precisions: Sequence[str],
    data: str = "",
    report: Callable[[str], None] = _log.info,
) -> dict[str, Any]:
    """Give a bundle further forms; those that it has are left as they are, and measured if they were not.

    Args:
        path: of the bundle.
        formats: onnx, pt2.
        precisions: fp16, int8, of ONNX.
        data: folder of the shards whose validation split they are measured on; "": where the run had them.
        report: called with one line per step.

    Returns:
        The entry in bundle.json of each of these files, by file name.

    Raises:
        ConfigError: as `check_formats`.
        DataError: the bundle is damaged.
        ChoralError: a file in full precision predicts otherwise than the bundle; it is not kept.
    """
    check_formats(formats, precisions)
    bundle = read_bundle(path)
    file_names = [FORM_FILES[name] for name in formats] + [PRECISIONS[name] for name in precisions]
    missing = [name for name in file_names if name not in bundle.forms]
    facts = {name: dict(bundle.forms[name]) for name in file_names if name in bundle.forms}
    try:
        if missing:
            facts |= _write_and_check(bundle, missing, report)
        is_new = _measure_precision_loss(bundle, facts, data, report) or bool(missing)
    except BaseException:
        for name in missing:  # what is not in bundle.json is not in the bundle
            (path / name).unlink(missing_ok=True)
            (path / FOLDER / f"{name}.safetensors").unlink(missing_ok=True)
        raise
    if is_new:
        update_bundle(path, {"forms": {**bundle.forms, **facts}})
    return {name: facts[name] for name in file_names}


def _write_and_check(bundle: Bundle, names: Sequence[str], report: Callable[[str], None]) -> dict[str, dict[str, Any]]:
    """Write files and return the facts about each; those in full precision are checked against the golden samples."""
    path = bundle.path
    _write_files(bundle, names, report)
    golden = read_golden(path, len(bundle.inputs))
    facts: dict[str, dict[str, Any]] = {}
    for name in names:
        found = open_form(path / name).predict_batch(golden.pixels)
        facts[name] = {"precision": _precision(name), "megabytes": (path / name).stat().st_size / 1e6}
        if _precision(name) != "fp32":
            write_form_predictions(path, name, found)
            continue
        allowed = TOLERANCE * bundle.policy.calibration.steepness
        check = compare_with_reference(name, found, golden.predicted, bundle.policy, allowed)
        if not check.passed:
            raise ChoralError(
                f"{path / name}: predictions differ from the bundle by {check.difference:.1e} in a probability, "
                f"expected at most {allowed:.0e}. It was not kept; please report the architectures"
            )
    return facts


def _precision(name: str) -> str:
    return next((precision for precision, file in PRECISIONS.items() if file == name), "fp32")


def _write_files(bundle: Bundle, names: Sequence[str], report: Callable[[str], None]) -> None:
    """Write the files; a graph in full precision is made once for all that need one."""
    members = [load_member(member, torch.device("cpu")) for member in bundle.members]
    facts = build_metadata(bundle.name, bundle.policy, bundle.inputs)
    inputs, path = bundle.inputs, bundle.path
    if PRECISIONS["fp16"] in names:  # first: it copies the networks, whose activations a graph changes
        report(f"writing {PRECISIONS['fp16']}")
        half = export_program(EnsembleGraph(members, bundle.policy, half=True), inputs)
        write_onnx(half, inputs, path / PRECISIONS["fp16"], facts)
    if any(name in names for name in FORM_FILES.values()):
        program = export_program(EnsembleGraph(members, bundle.policy), inputs)
        if FORM_FILES["onnx"] in names:
            report(f"writing {FORM_FILES['onnx']}")
            write_onnx(program, inputs, path / FORM_FILES["onnx"], facts)
        if FORM_FILES["pt2"] in names:
            report(f"writing {FORM_FILES['pt2']}")
            write_pt2(program, path / FORM_FILES["pt2"], facts)
    if PRECISIONS["int8"] in names:
        report(f"writing {PRECISIONS['int8']}")
        write_int8(path / FORM_FILES["onnx"], path / PRECISIONS["int8"])


def _measure_precision_loss(
    bundle: Bundle, facts: Mapping[str, dict[str, Any]], data: str, report: Callable[[str], None]
) -> bool:
    """Note what forms of lower precision lose on the validation split, against the bundle's networks; whether any is new."""
    lower = [name for name in facts if _precision(name) != "fp32" and "measured" not in facts[name]]
    if not lower:
        return False
    report("measuring on the validation split what lower precision loses")
    members = [load_member(member, torch.device("cpu")) for member in bundle.members]
    engines = {name: open_form(bundle.path / name) for name in lower}
    try:
        split_predictions = predict_split(
            bundle, {"": TorchEngine(members, bundle.policy, "cpu"), **engines}, data=data
        )
    except (DataError, ConfigError) as error:
        _log.warning("the cost of lower precision was not measured: %s; give the shards with --data FOLDER", error)
        return False
    own = {name: split_predictions.predictions_by_name[name] for name in lower}
    for name, loss in compare_predictions(
        bundle.policy, split_predictions.labels, own, split_predictions.predictions_by_name[""]
    ):
        facts[name]["measured"] = {"split": split_predictions.split, **loss.to_json()}
    return True
