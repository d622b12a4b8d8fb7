"""The model card of one network for the Hugging Face Hub: README.md, with the metadata that the Hub reads. Needs no torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

from choral.deploy.bundle.markdown import block, document, listed, plain
from choral.deploy.bundle.model_card import CITED, licences_part, limits_part, provenance_part, scores_part
from choral.scoring.predictor_table import METRIC_HEADINGS

_PIPELINE = "image-classification"
_KNOWN_LICENCES = (
    *("apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "gpl-3.0", "lgpl-3.0", "agpl-3.0", "mpl-2.0", "unlicense"),
    *("cc0-1.0", "cc-by-4.0", "cc-by-3.0", "cc-by-sa-4.0", "cc-by-sa-3.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0"),
    *("cc-by-nc-sa-3.0", "cc-by-nc-nd-4.0", "cc-by-nd-4.0", "odbl", "openrail"),
)
"""Those of the Hub's identifiers that weights and data of images come under."""


def render_hub_card(content: Mapping[str, Any]) -> str:
    """Return the card of a network, as Markdown with a head of YAML.

    Args:
        content: like bundle.json, for a bundle of this one member under the identity view; see
            `choral.deploy.bundle.model_card`. `members` holds one entry.
    """
    (member,) = content["members"]
    names = {"multiclass": "classes", "multilabel": "labels", "regression": "numbers"}[content["task"]]
    return _head(content) + document(
        f"# {plain(content['name'])}",
        f"{plain(member['architecture'])}, fine-tuned for the {names} {listed(content['classes'])}.",
        CITED,
        "## How to use it",
        "YOU/NAME is its place on the Hub; of a folder on this machine it is `local-dir:FOLDER`.",
        block(
            "python",
            "import timm, torch",
            "from PIL import Image, ImageOps",
            "",
            'network = timm.create_model("hf-hub:YOU/NAME", pretrained=True).eval()',
            "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(network))",
            'image = ImageOps.exif_transpose(Image.open("photo.jpg")).convert("RGB")',
            "with torch.inference_mode():",
            "    outputs = network(transform(image)[None])",
            _predictions(content["task"], member["outputs"]),
        ),
        "## What it scores",
        "One forward pass per image, not calibrated.",
        *scores_part(content),
        "## What it is for, and its limits",
        limits_part(content),
        "## Licences",
        licences_part(content),
        "## Where it comes from",
        provenance_part(content),
    )


def _predictions(task: str, outputs: Mapping[str, Any]) -> str:
    """Return the line of code that turns what a network puts out into predictions."""
    if task == "regression":
        scale, shift = (list(map(float, outputs[key])) for key in ("target_std", "target_mean"))
        return f"values = outputs * torch.tensor({scale}) + torch.tensor({shift})"
    if task == "multilabel":
        return "probabilities = outputs.sigmoid()"
    if outputs["one_against_all"]:
        return "probabilities = outputs.sigmoid() / outputs.sigmoid().sum(1, keepdim=True)"
    return "probabilities = outputs.softmax(1)"


def _head(content: Mapping[str, Any]) -> str:
    """Return the metadata that the Hub searches and displays."""
    classifies = content["task"] != "regression"
    head: dict[str, Any] = {"library_name": "timm"}
    if classifies:
        head["pipeline_tag"] = _PIPELINE
    head["tags"] = [*([_PIPELINE] if classifies else []), "timm", "choral"]
    head |= _licence(content.get("licences") or {})
    if results := _results(content):
        head["model-index"] = [{"name": content["name"], "results": results}]
    return f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True)}---\n\n"


def _licence(licences: Mapping[str, str]) -> dict[str, str]:
    """Return the Hub's licence fields: one identifier if data and weights share it, else a name that states both."""
    stated = {key: _identifier(licences.get(key, "")) for key in ("data", "weights")}
    if len(set(stated.values())) == 1 and stated["data"] in _KNOWN_LICENCES:
        return {"license": stated["data"]}
    name = "-".join(f"{key}-{value or 'not-stated'}" for key, value in stated.items())
    return {"license": "other", "license_name": name}


def _identifier(licence: str) -> str:
    """Return a licence in the Hub's manner of writing, without the package that states it."""
    return re.sub(r"[^a-z0-9.]+", "-", licence.partition("(")[0].strip().lower()).strip("-")


def _results(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what it scores in the Hub's terms, of splits that nothing was chosen on."""
    data = (content.get("provenance") or {}).get("data") or {}
    name = data.get("name") or "unknown"
    found = []
    for split, own in (content.get("scores") or {}).items():
        if own.get("chosen_on_it"):
            continue
        metrics = [
            {"type": metric, "value": round(numbers["value"], 6), "name": METRIC_HEADINGS[metric].removesuffix(" %")}
            for metric, numbers in own["metrics"].items()
            if numbers is not None
        ]
        dataset = {"name": name, "type": re.sub(r"[^A-Za-z0-9._/-]+", "-", name), "split": split}
        found.append({"task": {"type": _PIPELINE}, "dataset": dataset, "metrics": metrics})
    return found if content["task"] != "regression" else []
