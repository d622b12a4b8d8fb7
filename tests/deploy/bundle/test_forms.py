"""The ensemble as one file: what it says, that it needs neither torch nor choral, and that nothing in it is executed."""

from __future__ import annotations

import io
import json
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_graph import COMBINERS, stacks
from torch import Tensor, nn

from choral.core.errors import ConfigError, DataError
from choral.deploy.bundle.combine_module import CombinationModule
from choral.deploy.bundle.forms import open_form
from choral.deploy.bundle.forms.archive_check import check_archive
from choral.deploy.bundle.forms.onnx_form import write_onnx
from choral.deploy.bundle.forms.program import build_metadata, export_program
from choral.deploy.bundle.forms.pt2_form import write_pt2
from choral.deploy.bundle.graph import EnsembleGraph, TorchEngine
from choral.ensembles.rules import Combiner
from choral.scoring.calibration_maps import CalibrationMap
from made_ensembles import batch, inputs, members, plain

KNOTS = (((0.1, 0.5, 0.9), (0.05, 0.6, 0.8)), ((0.3,), (0.4,)), ((0.0, 1.0), (0.1, 0.7)))
ANSWERING = replace(
    plain(views=("identity", "hflip", "rot90", "scale[0.9]", "contrast[1.2]")),
    rule=Combiner("weighted", "multiclass", (0.5, 0.2, 0.3)),
    calibration=CalibrationMap("isotonic", "multiclass", knots=KNOTS),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """model.onnx and model.pt2 of three members of two sizes and two normalisations."""
    path = tmp_path_factory.mktemp("forms")
    own = members()
    facts = build_metadata("cells", ANSWERING, inputs(own))
    program = export_program(EnsembleGraph(own, ANSWERING), inputs(own))
    write_onnx(program, inputs(own), path / "model.onnx", facts)
    write_pt2(program, path / "model.pt2", facts)
    assert sorted(file.name for file in path.iterdir()) == ["model.onnx", "model.pt2"]
    return path


@pytest.mark.parametrize("name", ["model.onnx", "model.pt2"])
def test_forms_say_what_the_networks_say(folder: Path, name: str) -> None:
    """60 images under 5 views are more than an engine asks about at once."""
    own = members()
    engine, form = TorchEngine(own, ANSWERING, "cpu"), open_form(folder / name)
    for count in (1, 7, 60):
        images = batch(own, count)
        expected, found = engine.predict_batch(images), form.predict_batch(images)
        assert found.combined.dtype == found.by_member.dtype == np.float32
        np.testing.assert_allclose(found.combined, expected.combined, atol=2e-6)
        np.testing.assert_allclose(found.by_member, expected.by_member, atol=2e-6)
        assert found.by_member.shape == (3, count, 3)


def test_every_rule_and_map_in_onnxruntime() -> None:
    import onnxruntime

    rules = ("hard", "geometric", "stack", "boosting, tempered")
    ways = [replace(plain(), rule=COMBINERS[rule]) for rule in rules]
    vector = CalibrationMap("vector", "multilabel", weights=(1.2, 0.7, 1.0), biases=(0.1, -0.2, 0.0))
    ways += [
        replace(plain("multilabel"), calibration=vector),
        replace(plain("regression"), rule=Combiner("median", "regression")),
    ]

    class All(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.ways = nn.ModuleList(map(CombinationModule, ways))

        def forward(self, own: Tensor) -> list[Tensor]:
            return [way(own) for way in self.ways]

    program = torch.export.export(All(), (torch.zeros(3, 2, 3),), dynamic_shapes=({1: torch.export.Dim("batch")},))
    written = torch.onnx.export(program, dynamo=True, input_names=["own"], optimize=False, verbose=False)
    assert written is not None
    session = onnxruntime.InferenceSession(written.model_proto.SerializeToString(), providers=["CPUExecutionProvider"])
    stack = stacks(200)
    for way, found in zip(ways, session.run(None, {"own": stack}), strict=True):
        expected = way.combine(stack)
        np.testing.assert_allclose(found, expected, atol=1e-6, err_msg=way.rule.rule)
        if way.rule.rule in ("hard", "boosting"):  # ties are told apart alike
            np.testing.assert_array_equal(found.argmax(axis=1), expected.argmax(axis=1))


ALONE = """
import sys
for name in ("torch", "choral", "timm"):
    sys.modules[name] = None
import json, numpy, onnxruntime
from PIL import Image
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
facts = session.get_modelmeta().custom_metadata_map
image = Image.open(sys.argv[2]).convert("RGB")
sizes = {item.name: item.shape[1] for item in session.get_inputs()}
images = {name: numpy.asarray(image.resize((size, size)))[None] for name, size in sizes.items()}
probabilities, votes = session.run(["probabilities", "by_member"], images)
print(json.dumps([json.loads(facts["classes"]), facts["task"], probabilities.tolist(), list(votes.shape)]))
"""


def test_onnx_needs_neither_torch_nor_choral(folder: Path, tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    Image.fromarray(image).save(tmp_path / "a.png")
    command = [sys.executable, "-c", ALONE, str(folder / "model.onnx"), str(tmp_path / "a.png")]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=tmp_path)
    classes, task, probabilities, shape = json.loads(done.stdout)
    assert (classes, task, shape) == (["x", "y", "z"], "multiclass", [1, 3, 3])
    own = [np.asarray(Image.fromarray(image).resize((size, size)))[None] for size in (8, 6)]
    np.testing.assert_allclose(probabilities, open_form(folder / "model.onnx").predict_batch(own).combined, atol=1e-6)


def test_files_tell_nothing_about_this_machine(folder: Path) -> None:
    for name in ("model.onnx", "model.pt2"):
        data = (folder / name).read_bytes()
        assert b".py" not in data and str(Path.home()).encode() not in data, name


def test_nothing_is_unpickled(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("unpickled")

    for owner, name in [(pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (torch, "load")]:
        monkeypatch.setattr(owner, name, refuse)
    monkeypatch.setattr(torch._C, "_pickle_load_obj", refuse)
    images = batch(members(), 2)
    assert open_form(folder / "model.pt2").predict_batch(images).combined.shape == (2, 3)
    with pytest.raises(AssertionError, match="unpickled"):  # as a file that torch itself writes would be
        torch.export.load(torch_s_own())


def torch_s_own() -> io.BytesIO:
    program = torch.export.export(nn.Linear(2, 2), (torch.zeros(1, 2),))
    written = io.BytesIO()
    torch.export.save(program, written)
    return written


def changed(data: bytes, record: str, change: Callable[[str], str]) -> bytes:
    """Return an archive, one record of it changed."""
    before, after = zipfile.ZipFile(io.BytesIO(data)), io.BytesIO()
    found = 0
    with zipfile.ZipFile(after, "w", zipfile.ZIP_STORED) as written:
        for name in before.namelist():
            content = before.read(name)
            if name.endswith(record):
                found, content = found + 1, change(content.decode()).encode()
            written.writestr(name, content)
    assert found == 1
    return after.getvalue()


def node(target: str) -> Callable[[str], str]:
    """Return what makes the first operation another."""

    def change(text: str) -> str:
        program = json.loads(text)
        program["graph_module"]["graph"]["nodes"][0]["target"] = target
        return json.dumps(program)

    return change


def guard(text: str) -> str:
    return json.dumps({**json.loads(text), "guards_code": ["__import__('os').system('true')"]})


def expression(text: str) -> str:
    assert text.count("Mul(Integer(5)") > 0
    return text.replace("Mul(Integer(5)", "__import__('os').system('true') or Mul(Integer(5)", 1)


HOSTILE = {
    "an operator elsewhere": ("models/model.json", node("torch.hub.load"), "target 'torch.hub.load'"),
    "an operator of files": ("models/model.json", node("torch.ops.aten.from_file.default"), "from_file"),
    "a guard": ("models/model.json", guard, "guards_code that are not empty"),
    "an expression": ("models/model.json", expression, "expr_str"),
    "a pickle": ("data/sample_inputs/model.pt", lambda _: "x", "pickled example inputs"),
    "a pickled weight": (
        "model_weights_config.json",
        lambda text: text.replace('"use_pickle": false', '"use_pickle": true', 1),
        "a pickled tensor",
    ),
    "a record": ("byteorder", str, "a record 'data/aotinductor/model.so'"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_program_that_would_run_code_is_refused(folder: Path, what: str) -> None:
    record, change, reason = HOSTILE[what]
    data = (folder / "model.pt2").read_bytes()
    check_archive(changed(data, record, str), "a.pt2")
    hostile = changed(data, record, change)
    if what == "a record":
        with zipfile.ZipFile(added := io.BytesIO(hostile), "a") as archive:
            archive.writestr(f"{archive.namelist()[0].split('/')[0]}/data/aotinductor/model.so", b"x")
        hostile = added.getvalue()
    with pytest.raises(DataError, match=f"a.pt2: .*{reason}.*not loaded"):
        check_archive(hostile, "a.pt2")


def test_files_that_are_none(folder: Path, tmp_path: Path) -> None:
    for suffix in (".onnx", ".pt2"):
        path = tmp_path / f"cut{suffix}"
        path.write_bytes((folder / f"model{suffix}").read_bytes()[:3000])
        with pytest.raises(DataError, match="cut"):
            open_form(path)
    (tmp_path / "own.pt2").write_bytes(torch_s_own().getvalue())
    with pytest.raises(DataError, match="pickled example inputs"):
        open_form(tmp_path / "own.pt2")
    with pytest.raises(ConfigError, match=r"ends in \.onnx or \.pt2"):
        open_form(tmp_path / "model.tflite")
