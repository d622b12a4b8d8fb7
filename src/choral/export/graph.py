"""An ensemble as engines of PyTorch: its networks asked one after the other, with what they say combined in NumPy."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from itertools import groupby
from threading import Lock

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from choral.assess.answer import Answering
from choral.export.engine import Member, Predicted
from choral.inputs.looks import Look, forms_of
from choral.inputs.normalize import Normalizer
from choral.inputs.standardize import Standardizer
from choral.predict.asking import Manner, predictions_of


class TorchEngine:
    """Asks networks about prepared images as an evaluation does, and combines what they say as its ledger is combined.

    Members of equal looks share their batch and its views. Several threads may ask at the same time.

    Args:
        members: those that `answering` hears, in its order; their networks are moved to the device.
        answering: how they answer together.
        device: that computes.

    Raises:
        ValueError: other members than are heard.
    """

    def __init__(self, members: Sequence[Member], answering: Answering, device: torch.device | str) -> None:
        check_heard(members, answering)
        self._answering, self._device = answering, torch.device(device)
        self._forms = forms_of([member.look for member in members])
        self._members = [(member.network.to(self._device).eval(), member.outputs) for member in members]
        looks = [member.look for member in members]
        places = sorted(range(len(members)), key=lambda place: repr(looks[place]))
        self._groups = [(looks[own[0]], own) for _, found in groupby(places, looks.__getitem__) if (own := list(found))]
        self._normalizers = {look: _Normalizing(look, self._device) for look, _ in self._groups}
        self._manner = manner_of(answering)

    def ask(self, images: Sequence[NDArray[np.uint8]]) -> Predicted:
        """Return what is said about a batch; see `Engine.ask`."""
        own: list[NDArray[np.float32] | None] = [None] * len(self._members)
        for look, places in self._groups:
            batch = self._normalizers[look](images[self._forms.index(look.form)])
            found = predictions_of([self._members[place] for place in places], look, batch, self._manner)
            for place, columns in zip(places, found, strict=True):
                own[place] = columns["tta"].cpu().numpy()
        by_member = np.stack([values for values in own if values is not None])
        return Predicted(by_member, self._answering.said(by_member))


def check_heard(members: Sequence[Member], answering: Answering) -> None:
    """Raise ValueError unless these are the members that are heard, in the order of the rule's weights."""
    names = tuple(member.name for member in members)
    if names != answering.members:
        raise ValueError(f"members {', '.join(names)}, expected {', '.join(answering.members)}")


def manner_of(answering: Answering) -> Manner:
    """Return how networks are asked for what each says by itself."""
    weights = tuple(answering.views.values())
    uneven = len(set(weights)) > 1
    return Manner(tuple(answering.views), ("tta",), nullcontext, answering.average, weights=weights if uneven else ())


class _Normalizing:
    """From prepared bytes to what networks are shown, by the arithmetic of an evaluation on the same device."""

    def __init__(self, look: Look, device: torch.device) -> None:
        self._device, self._lock = device, Lock()
        self._on_device = Standardizer(look.mean, look.std, device, None, look.channels_last)
        self._on_host = Normalizer(look.mean, look.std, look.channels_last) if device.type == "cpu" else None

    def __call__(self, images: NDArray[np.uint8]) -> Tensor:
        """Return (B, 3, S, S) float32 on the device, of (B, S, S, 3)."""
        if self._on_host is not None:
            with self._lock:  # its buffers are not for several threads; what it returned stays the caller's
                return self._on_host(images, None)
        return self._on_device(torch.from_numpy(images).to(self._device), {})
