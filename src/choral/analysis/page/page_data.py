"""An analysis as the JSON that the page's scripts read: numbers of many samples as typed arrays in base64.

50,000 samples of 1,000 classes and ten members are about 6 MB, and a browser has them unpacked in some 50 ms.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from choral.analysis.page.highlights import highlights_of
from choral.analysis.results import Analysis, SampleTable, plain

_DIGITS = 6
_LARGEST_VOTES = 4 << 20  # bytes of what all members say; more are left out, and only the answer is shown
_WITHOUT = {
    "probes": "Not probed yet, or with other weights: `choral probe {run}` changes the images family by family.",
    "advice": "No advice yet, or of other weights: `choral improve` probes, advises, and checks what the advice brings.",
}


class Column(TypedDict):
    """A little-endian array: i2, i4, u1, u2, u4 or f4, and its bytes in base64."""

    type: str
    data: str


def packed(analysis: Analysis) -> dict[str, Any]:
    """Return plain JSON without NaN of all that a page shows, but for pictures.

    Sections that need something which is not there say why, in `without`.
    """
    return {
        "meta": {
            name: getattr(analysis, name) for name in ("run", "split", "predictor", "task", "n", "skipped", "date")
        }
        | {"classes": list(analysis.classes), "members": list(analysis.members)},
        "summary": rounded(plain(analysis.summary)),
        "highlights": [vars(one) for one in highlights_of(analysis)],
        "samples": _samples(analysis.samples, analysis.task, len(analysis.classes)),
        "groups": rounded(plain(analysis.groups)),
        "reliability": rounded(plain(analysis.reliability)),
        "coverage": rounded(plain(analysis.coverage)),
        "label_errors": rounded(plain(analysis.label_errors)),
        "duplicates": rounded(plain(analysis.duplicates)),
        "health": rounded(plain(analysis.health)),
        "probes": rounded(plain(analysis.probes)),
        "advice": _advice(analysis),
        "without": {name: text.format(run=analysis.run) for name, text in _WITHOUT.items()},
    }


def column(values: NDArray[Any]) -> Column:
    """Return an array that scripts unpack; its type is one that they know."""
    kind = values.dtype.newbyteorder("<")
    return Column(type=kind.str[1:], data=base64.b64encode(np.ascontiguousarray(values, dtype=kind).tobytes()).decode())


def rounded(value: Any, digits: int = _DIGITS) -> Any:
    """Return plain JSON with numbers of so many significant digits: half the bytes, and more than is shown."""
    if isinstance(value, float):
        return float(f"{value:.{digits}g}") if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: rounded(own, digits) for name, own in value.items()}
    if isinstance(value, list):
        return [rounded(own, digits) for own in value]
    return value


def _samples(samples: SampleTable, task: str, classes: int) -> dict[str, Any]:
    votes = [_answers(samples.votes[:, member], task, classes) for member in range(samples.votes.shape[1])]
    confident = samples.vote_confidence.size > 0
    return {
        "keys": samples.keys,
        "loss": column(samples.loss.astype(np.float32)),
        "confidence": column(samples.confidence.astype(np.float32)),
        "right": column(samples.right.astype(np.uint8)),
        "labels": _answers(samples.labels, task, classes),
        "predicted": _answers(samples.predicted, task, classes),
        "votes": votes if sum(map(_size, votes)) <= _LARGEST_VOTES else None,
        "vote_confidence": column(_steps(samples.vote_confidence, np.uint8)) if confident else None,
        "top": column(samples.top.astype(np.int32)),
        "top_probability": column(_steps(samples.top_probability, np.uint16)),
        "tops": int(samples.top.shape[1]),
        "slices": {
            name: {"values": list(own.values), "codes": column(own.codes.astype(np.int16))}
            for name, own in samples.slices.items()
        },
    }


def _answers(values: NDArray[Any], task: str, classes: int) -> Any:
    """Return classes as numbers, sets of labels as lists of ids, one after the other with where each starts, or numbers."""
    if task == "multiclass":
        return column(values.astype(np.int16 if classes < 1 << 15 else np.int32))
    if task == "regression":
        return column(values.astype(np.float32))
    _, ids = np.nonzero(values)
    offsets = np.concatenate([[0], np.cumsum(values.sum(axis=1))])
    return {"offsets": column(offsets.astype(np.uint32)), "ids": column(ids.astype(np.uint16))}


def _size(answers: Any) -> int:
    return sum(len(one["data"]) for one in ([answers] if "data" in answers else answers.values()))


def _steps(shares: NDArray[np.float32], kind: type[np.unsignedinteger[Any]]) -> NDArray[Any]:
    """Return shares of 1 as whole numbers up to the largest of the type."""
    return np.rint(np.clip(shares, 0, 1) * np.iinfo(kind).max).astype(kind)


def _advice(analysis: Analysis) -> dict[str, Any] | None:
    if analysis.advice is None:
        return None
    return {**rounded(plain(analysis.advice)), "yaml": analysis.advice.to_yaml()}
