"""Packs an analysis as the JSON that the page's scripts read; numbers of many samples are typed arrays in base64.

50,000 samples of 1,000 classes and ten members take about 6 MB, which a browser unpacks in some 50 ms.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from choral.analysis.json_values import to_plain_json
from choral.analysis.page.highlights import find_highlights
from choral.analysis.results import Analysis
from choral.analysis.samples import SampleTable

_DIGITS = 6
_MAX_VOTE_BYTES = 4 << 20  # beyond that, the page leaves out the members' predictions
_MISSING = {
    "probes": "Not probed, or probed with other weights. `choral probe {run}` perturbs the images family by family.",
    "advice": "No advice, or advice for other weights. `choral improve` probes the run, derives advice, and tests it.",
}


class EncodedArray(TypedDict):
    """A little-endian array: its type (i2, i4, u1, u2, u4 or f4) and its bytes in base64."""

    type: str
    data: str


def build_page_data(analysis: Analysis) -> dict[str, Any]:
    """Return everything that the page shows, except images, as plain JSON without NaN.

    `missing` explains the sections for which the run has no data.
    """
    advice = analysis.advice
    return {
        "meta": {
            name: getattr(analysis, name) for name in ("run", "split", "predictor", "task", "n", "skipped", "date")
        }
        | {"classes": list(analysis.classes), "members": list(analysis.members)},
        "highlights": [vars(one) for one in find_highlights(analysis)],
        "samples": _pack_samples(analysis.samples, analysis.task, len(analysis.classes)),
        **{
            name: round_numbers(to_plain_json(getattr(analysis, name)))
            for name in (
                *("summary", "groups", "reliability", "coverage"),
                *("label_errors", "duplicates", "health", "probes"),
            )
        },
        "advice": None if advice is None else {**round_numbers(to_plain_json(advice)), "yaml": advice.to_yaml()},
        "missing": {name: text.format(run=analysis.run) for name, text in _MISSING.items()},
    }


def encode_array(values: NDArray[Any]) -> EncodedArray:
    """Return an array as the scripts read it; its dtype must be one of `EncodedArray`."""
    dtype = values.dtype.newbyteorder("<")
    data = np.ascontiguousarray(values, dtype=dtype).tobytes()
    return EncodedArray(type=dtype.str[1:], data=base64.b64encode(data).decode())


def round_numbers(value: Any, digits: int = _DIGITS) -> Any:
    """Return plain JSON with numbers rounded to so many significant digits: half the bytes, more digits than are shown."""
    if isinstance(value, float):
        return float(f"{value:.{digits}g}") if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: round_numbers(item, digits) for name, item in value.items()}
    if isinstance(value, list):
        return [round_numbers(item, digits) for item in value]
    return value


def _pack_samples(samples: SampleTable, task: str, classes: int) -> dict[str, Any]:
    votes = [_pack_predictions(samples.votes[:, member], task, classes) for member in range(samples.votes.shape[1])]
    has_confidence = samples.vote_confidence.size > 0
    return {
        "keys": samples.keys,
        "loss": encode_array(samples.loss.astype(np.float32)),
        "confidence": encode_array(samples.confidence.astype(np.float32)),
        "right": encode_array(samples.right.astype(np.uint8)),
        "labels": _pack_predictions(samples.labels, task, classes),
        "predicted": _pack_predictions(samples.predicted, task, classes),
        "votes": votes if sum(map(_encoded_size, votes)) <= _MAX_VOTE_BYTES else None,
        "vote_confidence": encode_array(_quantize(samples.vote_confidence, np.uint8)) if has_confidence else None,
        "top": encode_array(samples.top.astype(np.int32)),
        "top_probability": encode_array(_quantize(samples.top_probability, np.uint16)),
        "top_count": int(samples.top.shape[1]),
        "slices": {
            name: {"values": list(column.values), "codes": encode_array(column.codes.astype(np.int16))}
            for name, column in samples.slices.items()
        },
    }


def _pack_predictions(values: NDArray[Any], task: str, classes: int) -> Any:
    """Return class ids or target values as an array, and sets of labels as concatenated ids with the offset of each set."""
    if task == "multiclass":
        return encode_array(values.astype(np.int16 if classes < 1 << 15 else np.int32))
    if task == "regression":
        return encode_array(values.astype(np.float32))
    _, ids = np.nonzero(values)
    offsets = np.concatenate([[0], np.cumsum(values.sum(axis=1))])
    return {"offsets": encode_array(offsets.astype(np.uint32)), "ids": encode_array(ids.astype(np.uint16))}


def _encoded_size(packed: Any) -> int:
    return sum(len(one["data"]) for one in ([packed] if "data" in packed else packed.values()))


def _quantize(shares: NDArray[np.float32], dtype: type[np.unsignedinteger[Any]]) -> NDArray[Any]:
    """Return shares of 1 as integers from 0 to the largest of the type."""
    return np.rint(np.clip(shares, 0, 1) * np.iinfo(dtype).max).astype(dtype)
