"""Examples of how to use a bundle: with choral, with onnxruntime alone, and one model with timm."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from choral.deploy.bundle.markdown import block

_SHOWN = {
    "multiclass": "print(prediction.label, prediction.probability, prediction.votes)",
    "multilabel": "print(prediction.labels, prediction.probabilities, prediction.votes)",
    "regression": "print(prediction.values, prediction.spreads, prediction.votes)",
}
_ONNX = "model.onnx"


def render_usage(content: Mapping[str, Any]) -> Iterator[str]:
    """Yield Markdown with examples for a bundle, given its bundle.json; BUNDLE stands for its directory."""
    yield "With choral; BUNDLE is this folder:"
    yield block(
        "python",
        "import choral",
        'predictor = choral.load("BUNDLE")',
        'prediction = predictor.predict("photo.jpg")    # a path, bytes, a Pillow image, an array, or a list of these',
        _SHOWN[content["task"]],
    )
    yield block(
        "sh",
        "choral verify BUNDLE                           # checksums and golden samples",
        "choral predict BUNDLE photos/ -o predictions.csv",
        "choral serve BUNDLE                            # an HTTP service with a web page",
    )
    if _ONNX in (content.get("forms") or {}):
        yield from _onnx(content)
    first = content["members"][0]
    yield (
        "One model alone, with timm, for logits (its BatchNorms are folded into the layers before them: not to be trained "
        "further):"
    )
    yield block(
        "python",
        "import timm",
        f'network = timm.create_model("local-dir:BUNDLE/{first["folder"]}", pretrained=True).eval()',
    )


def _onnx(content: Mapping[str, Any]) -> Iterator[str]:
    """Yield the example of the ONNX file without choral and torch."""
    output = "values" if content["task"] == "regression" else "probabilities"
    input_specs = _input_specs_by_name(content)
    yield (
        "Without choral or torch: `model.onnx` takes uint8 images, RGB, upright, cut out and resized as the networks expect "
        "them; all that follows is inside, calibration included. Thresholds, costs and sets are not: see `prediction` in "
        "bundle.json."
    )
    yield block(
        "python",
        "import numpy, onnxruntime",
        "from PIL import Image, ImageOps",
        "",
        "def prepared(image, size, crop_pct):    # the whole image, or the central square of its short side",
        "    short, sides = int(size / (crop_pct or 1)), (size, size)",
        "    if crop_pct:",
        "        sides = [short * side // min(image.size) for side in image.size]",
        "    image = image.resize(sides, Image.Resampling.BILINEAR)",
        "    left, top = (round((side - size) / 2) for side in sides)",
        "    return numpy.asarray(image.crop((left, top, left + size, top + size)))[None]",
        "",
        'session = onnxruntime.InferenceSession("BUNDLE/model.onnx")',
        'image = ImageOps.exif_transpose(Image.open("photo.jpg")).convert("RGB")',
        "images = {",
        *(
            f'    "{name}": prepared(image, {input_spec["size"]}, {_share(input_spec)}),'
            for name, input_spec in input_specs.items()
        ),
        "}",
        f'({output},) = session.run(["{output}"], images)    # a row an image, its columns in the order of `classes`',
    )
    fast = any(input_spec["resize"] == "fast" for input_spec in input_specs.values())
    yield (
        "Pillow resizes to within a level of 255 of what choral does"
        + (", but for networks with `resize: fast`, which see OpenCV's plain linear" if fast else "")
        + "; where every digit counts, let choral prepare the images (`predictor.prepare`)."
    )


def _input_specs_by_name(content: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return, by name of an input, how its images are prepared: inputs stand in the order in which members need them."""
    keys = ("size", "crop", "crop_pct", "resize")
    forms = {tuple(member["look"][key] for key in keys): member["look"] for member in content["members"]}
    return dict(zip((item["name"] for item in content["inputs"]), forms.values(), strict=True))


def _share(input_spec: Mapping[str, Any]) -> float | None:
    return input_spec["crop_pct"] if input_spec["crop"] == "center" else None
