"""Further forms of a bundle: files of the whole ensemble, put beside its networks, checked, and measured where they round."""

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
from choral.deploy.bundle.forms.program import facts_of, program_of
from choral.deploy.bundle.forms.pt2_form import write_pt2
from choral.deploy.bundle.golden import FOLDER, read_golden, write_own_golden
from choral.deploy.bundle.graph import EnsembleGraph, TorchEngine
from choral.deploy.bundle.predictor import FORM_FILES, load_member
from choral.deploy.bundle.read import Bundle, read_bundle, update
from choral.deploy.bundle.split_predictions import hear, losses_of
from choral.deploy.bundle.verify import TOLERANCE, check_of

_log = logging.getLogger(__name__)
PRECISIONS = {"fp16": "model-fp16.onnx", "int8": "model-int8.onnx"}
"""Of ONNX, beside full precision, to the names of their files."""


def check_wanted(formats: Sequence[str], precisions: Sequence[str]) -> None:
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
    say: Callable[[str], None] = _log.info,
) -> dict[str, Any]:
    """Give a bundle further forms; those that it has are left as they are, and measured if they were not.

    Args:
        path: of the bundle.
        formats: onnx, pt2.
        precisions: fp16, int8, of ONNX.
        data: folder of the shards whose validation split they are measured on; "": where the run had them.
        say: is told what goes on.

    Returns:
        What bundle.json says of each of these forms, by the name of its file.

    Raises:
        ConfigError: as `check_wanted`.
        DataError: the bundle is damaged.
        ChoralError: a form in full precision answers otherwise than the bundle; it is not kept.
    """
    check_wanted(formats, precisions)
    bundle = read_bundle(path)
    wanted = [FORM_FILES[name] for name in formats] + [PRECISIONS[name] for name in precisions]
    missing = [name for name in wanted if name not in bundle.forms]
    facts = {name: dict(bundle.forms[name]) for name in wanted if name in bundle.forms}
    try:
        if missing:
            facts |= _made(bundle, missing, say)
        is_new = _measure(bundle, facts, data, say) or bool(missing)
    except BaseException:
        for name in missing:  # what is not in bundle.json is not in the bundle
            (path / name).unlink(missing_ok=True)
            (path / FOLDER / f"{name}.safetensors").unlink(missing_ok=True)
        raise
    if is_new:
        update(path, {"forms": {**bundle.forms, **facts}})
    return {name: facts[name] for name in wanted}


def _made(bundle: Bundle, names: Sequence[str], say: Callable[[str], None]) -> dict[str, dict[str, Any]]:
    """Write forms, and return what is known of each, once those in full precision were checked."""
    path = bundle.path
    _write(bundle, names, say)
    golden = read_golden(path, len(bundle.inputs))
    facts: dict[str, dict[str, Any]] = {}
    for name in names:
        found = open_form(path / name).ask(golden.pixels)
        facts[name] = {"precision": _precision(name), "megabytes": (path / name).stat().st_size / 1e6}
        if _precision(name) != "fp32":
            write_own_golden(path, name, found)
            continue
        allowed = TOLERANCE * bundle.answering.calibration.steepness
        check = check_of(name, found, golden.predicted, bundle.answering, allowed)
        if not check.passed:
            raise ChoralError(
                f"{path / name}: says something else than the bundle: {check.difference:.1e} apart in a probability, "
                f"expected at most {allowed:.0e}. It was not kept; please report the architectures"
            )
    return facts


def _precision(name: str) -> str:
    return next((precision for precision, file in PRECISIONS.items() if file == name), "fp32")


def _write(bundle: Bundle, names: Sequence[str], say: Callable[[str], None]) -> None:
    """Write the files; a graph in full precision is made once for all that need one."""
    members = [load_member(member, torch.device("cpu")) for member in bundle.members]
    facts = facts_of(bundle.name, bundle.answering, bundle.inputs)
    inputs, path = bundle.inputs, bundle.path
    if PRECISIONS["fp16"] in names:  # first: it copies the networks, whose activations a graph changes
        say(f"writing {PRECISIONS['fp16']}")
        half = program_of(EnsembleGraph(members, bundle.answering, half=True), inputs)
        write_onnx(half, inputs, path / PRECISIONS["fp16"], facts)
    if any(name in names for name in FORM_FILES.values()):
        program = program_of(EnsembleGraph(members, bundle.answering), inputs)
        if FORM_FILES["onnx"] in names:
            say(f"writing {FORM_FILES['onnx']}")
            write_onnx(program, inputs, path / FORM_FILES["onnx"], facts)
        if FORM_FILES["pt2"] in names:
            say(f"writing {FORM_FILES['pt2']}")
            write_pt2(program, path / FORM_FILES["pt2"], facts)
    if PRECISIONS["int8"] in names:
        say(f"writing {PRECISIONS['int8']}")
        write_int8(path / FORM_FILES["onnx"], path / PRECISIONS["int8"])


def _measure(bundle: Bundle, facts: Mapping[str, dict[str, Any]], data: str, say: Callable[[str], None]) -> bool:
    """Note what forms of lower precision lose on the validation split, against the bundle's networks; whether any is new."""
    lower = [name for name in facts if _precision(name) != "fp32" and "measured" not in facts[name]]
    if not lower:
        return False
    say("measuring on the validation split what lower precision loses")
    members = [load_member(member, torch.device("cpu")) for member in bundle.members]
    engines = {name: open_form(bundle.path / name) for name in lower}
    try:
        heard = hear(bundle, {"": TorchEngine(members, bundle.answering, "cpu"), **engines}, data=data)
    except (DataError, ConfigError) as error:
        _log.warning("what lower precision costs was not measured: %s; --data FOLDER says where the shards are", error)
        return False
    own = {name: heard.said[name] for name in lower}
    for name, loss in losses_of(bundle.answering, heard.labels, own, heard.said[""]):
        facts[name]["measured"] = {"split": heard.split, **loss.to_json()}
    return True
