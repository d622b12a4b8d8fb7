"""A network as a folder that timm and the Hugging Face Hub know: `timm.create_model('local-dir:FOLDER', pretrained=True)`.

FOLDER/
  config.json          architecture, labels, and how images are prepared, in timm's words
  model.safetensors    the network's tensors under timm's own names
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import nn

from choral.data.loading.input_spec import InputSpec
from choral.models.output_spec import OutputSpec
from choral.runs.run_dir import write_json

CONFIG, WEIGHTS = "config.json", "model.safetensors"


def write_timm_folder(folder: Path, network: nn.Module, input_spec: InputSpec, outputs: OutputSpec) -> None:
    """Write a network as timm's `save_for_hf` does, without pickles.

    timm's own evaluation transform, made from config.json, prepares images as choral does, to within a level of 255 a
    pixel (with `resize: fast`: more).

    Args:
        folder: made where it is missing.
        network: as `choral.models.build` returns it, its weights in timm's layout (see `choral.deploy.bundle.fuse.fold`).
        input_spec: size, crop, resize, mean and std of its input.
        outputs: what its numbers mean.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    of_timm: dict[str, Any] = network.pretrained_cfg  # type: ignore[assignment]
    fixed = bool(of_timm.get("fixed_input_size"))
    size = input_spec.image_spec.size
    content = {
        "architecture": of_timm["architecture"],
        "num_classes": len(outputs.names),
        "num_features": network.num_features,
        "label_names": list(outputs.names),
        "model_args": {"num_classes": len(outputs.names), **({"img_size": size} if fixed else {})},
        "pretrained_cfg": {
            "custom_load": False,
            "num_classes": len(outputs.names),
            "input_size": [3, size, size],
            "fixed_input_size": fixed,
            "pool_size": None,
            **_preparation(input_spec),
            "first_conv": of_timm.get("first_conv"),
            "classifier": of_timm.get("classifier"),
        },
        "choral": _how_to_read(input_spec, outputs),
    }
    write_json(folder / CONFIG, content)


def _preparation(input_spec: InputSpec) -> dict[str, Any]:
    """Return how images are prepared, in the words of `timm.data.create_transform`."""
    crop = input_spec.image_spec.crop
    whole = crop.kind == "resized"
    return {
        "interpolation": "bilinear",
        "crop_pct": 1.0 if whole else crop.crop_pct,
        "crop_mode": "squash" if whole else "center",
        "mean": list(input_spec.mean),
        "std": list(input_spec.std),
    }


def _how_to_read(input_spec: InputSpec, outputs: OutputSpec) -> dict[str, Any]:
    """Return what timm has no words for: how logits become predictions, and how pixels were resized."""
    facts: dict[str, Any] = {
        "task": outputs.task,
        "resize": input_spec.image_spec.resize,
        "predictions": "softmax(logits)",
    }
    if outputs.task == "regression":
        facts |= {"predictions": "outputs * target_std + target_mean"}
        facts |= {"target_mean": list(outputs.target_mean), "target_std": list(outputs.target_std)}
    elif outputs.task == "multilabel":
        facts["predictions"] = "sigmoid(logits)"
    elif outputs.one_against_all:
        facts["predictions"] = "sigmoid(logits), divided by their sum over classes"
    return facts
