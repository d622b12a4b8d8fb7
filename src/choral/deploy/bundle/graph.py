"""An ensemble in PyTorch: as an engine that asks as an evaluation does, and as one network that exports.

The engine combines in NumPy what its networks say. The network does everything from bytes to calibrated probabilities, so
that a file of it needs neither choral nor, as ONNX, PyTorch.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import groupby
from threading import Lock

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from choral.data.loading.input_spec import InputSpec, image_specs_of
from choral.data.loading.normalize_batch import Standardizer
from choral.data.loading.normalize_cpu import Normalizer
from choral.deploy.bundle.combine_module import Combined, register
from choral.deploy.bundle.engine import Member, Predicted
from choral.inference.predict_chunk import InferenceOptions, ViewMean, predictions_of
from choral.inference.views.grammar import view_of
from choral.inference.views.transforms import Shown
from choral.scoring.policy import PredictionPolicy


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

    def __init__(self, members: Sequence[Member], answering: PredictionPolicy, device: torch.device | str) -> None:
        check_heard(members, answering)
        self._answering, self._device = answering, torch.device(device)
        self._forms = image_specs_of([member.input_spec for member in members])
        self._members = [(member.network.to(self._device).eval(), member.outputs) for member in members]
        self._groups = by_look(members)
        self._normalizers = {input_spec: _Normalizing(input_spec, self._device) for input_spec, _ in self._groups}
        self._manner = manner_of(answering)

    def ask(self, images: Sequence[NDArray[np.uint8]]) -> Predicted:
        """Return what is said about a batch; see `Engine.ask`."""
        own: list[NDArray[np.float32] | None] = [None] * len(self._members)
        for input_spec, places in self._groups:
            batch = self._normalizers[input_spec](images[self._forms.index(input_spec.form)])
            found = predictions_of([self._members[place] for place in places], input_spec, batch, self._manner)
            for place, columns in zip(places, found, strict=True):
                own[place] = columns["tta"].cpu().numpy()
        by_member = np.stack([values for values in own if values is not None])
        return Predicted(by_member, self._answering.said(by_member))


class EnsembleGraph(nn.Module):
    """An ensemble from bytes to calibrated probabilities: normalisation, views, members, averages, rule and calibration.

    Equal to `TorchEngine` but for rounding, ties of votes included. All constants are buffers. The views of a batch are
    one larger batch, so that each network is there once, however many views there are: a graph of 24 passes takes minutes
    to export. Memory grows with batch times views.

    Args:
        members: those that `answering` hears, in its order; in evaluation mode. Their networks become part of the graph.
        answering: how they answer together.
        half: networks compute in half precision, copies of these; what is outside of them stays in single.

    Raises:
        ValueError: other members than are heard.
    """

    def __init__(self, members: Sequence[Member], answering: PredictionPolicy, half: bool = False) -> None:
        super().__init__()
        check_heard(members, answering)
        self._forms = image_specs_of([member.input_spec for member in members])
        self._groups = by_look(members)
        self._manner = manner_of(answering)
        self._outputs = [replace(member.outputs, target_mean=(), target_std=()) for member in members]
        self.shows = nn.ModuleList(_Shows(input_spec, self._manner.views) for input_spec, _ in self._groups)
        self.networks = nn.ModuleList(_Member(member, half) for member in members)
        self.combined = Combined(answering)
        self.eval()

    def forward(self, *images: Tensor) -> tuple[Tensor, Tensor]:
        """Answer for a batch.

        Args:
            images: for each input, as `inputs_of` orders them, (B, S, S, 3) uint8 RGB.

        Returns:
            (B, C) float32 what the members say together, calibrated, and (B, M, C) float32 what each says by itself.
        """
        means = [ViewMean(outputs, self._manner) for outputs in self._outputs]
        views = self._manner.views
        for shows, (input_spec, places) in zip(self.shows, self._groups, strict=True):
            seen = shows(images[self._forms.index(input_spec.form)])
            for place in places:
                logits = self.networks[place](seen).unflatten(0, (len(views), -1))
                for number, view in enumerate(views):
                    means[place].add(view, logits[number])
        own = torch.stack([mean.found()["tta"] for mean in means])
        return self.combined(own), own.transpose(0, 1)


class _Shows(nn.Module):
    """What a look shows of images, under each view."""

    mean: Tensor
    std: Tensor

    def __init__(self, input_spec: InputSpec, views: Sequence[str]) -> None:
        super().__init__()
        size = input_spec.form.size
        self.register_buffer("mean", torch.tensor(input_spec.mean, dtype=torch.float32).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(input_spec.std, dtype=torch.float32).view(3, 1, 1))
        self.views = nn.ModuleList(Shown(view_of(view), size, size, input_spec.mean, input_spec.std) for view in views)
        self._format = torch.channels_last if input_spec.channels_last else torch.contiguous_format

    def forward(self, images: Tensor) -> Tensor:
        """Return (views x B, 3, S, S) float32, all images under the first view first, of (B, S, S, 3) uint8."""
        planes = images.permute(0, 3, 1, 2).float() / 255
        normal = (planes - self.mean) / self.std
        return torch.cat([view(normal) for view in self.views]).contiguous(memory_format=self._format)


class _Member(nn.Module):
    """A network; of regression, one that puts out the targets' own units."""

    mean: Tensor
    std: Tensor

    def __init__(self, member: Member, half: bool) -> None:
        super().__init__()
        self.network = copy.deepcopy(member.network).half() if half else member.network
        for module in self.network.modules():
            if hasattr(module, "inplace"):
                # Exporting to ONNX would take each apart, which takes ten times as long as all the rest.
                module.inplace = False  # type: ignore[assignment]
        self._dtype = torch.float16 if half else torch.float32
        self._standardised = bool(member.outputs.target_std)
        register(self, "mean", torch.tensor(member.outputs.target_mean, dtype=torch.float32))
        register(self, "std", torch.tensor(member.outputs.target_std, dtype=torch.float32))

    def forward(self, images: Tensor) -> Tensor:
        """Return (B, C) float32 outputs of (B, 3, S, S) normalised images."""
        values: Tensor = self.network(images.to(self._dtype)).float()
        return values * self.std + self.mean if self._standardised else values


def check_heard(members: Sequence[Member], answering: PredictionPolicy) -> None:
    """Raise ValueError unless these are the members that are heard, in the order of the rule's weights."""
    names = tuple(member.name for member in members)
    if names != answering.members:
        raise ValueError(f"members {', '.join(names)}, expected {', '.join(answering.members)}")


def by_look(members: Sequence[Member]) -> list[tuple[InputSpec, list[int]]]:
    """Return the different looks of members, and the places of those that share each."""
    input_specs = [member.input_spec for member in members]
    places = sorted(range(len(members)), key=lambda place: repr(input_specs[place]))
    return [(input_spec, list(own)) for input_spec, own in groupby(places, input_specs.__getitem__)]


def manner_of(answering: PredictionPolicy) -> InferenceOptions:
    """Return how networks are asked for what each says by itself."""
    weights = tuple(answering.views.values())
    uneven = len(set(weights)) > 1
    return InferenceOptions(
        tuple(answering.views), ("tta",), nullcontext, answering.average, weights=weights if uneven else ()
    )


class _Normalizing:
    """From prepared bytes to what networks are shown, by the arithmetic of an evaluation on the same device."""

    def __init__(self, input_spec: InputSpec, device: torch.device) -> None:
        self._device, self._lock = device, Lock()
        self._on_device = Standardizer(input_spec.mean, input_spec.std, device, None, input_spec.channels_last)
        self._on_host = (
            Normalizer(input_spec.mean, input_spec.std, input_spec.channels_last) if device.type == "cpu" else None
        )

    def __call__(self, images: NDArray[np.uint8]) -> Tensor:
        """Return (B, 3, S, S) float32 on the device, of (B, S, S, 3)."""
        if self._on_host is not None:
            with self._lock:  # its buffers are not for several threads; what it returned stays the caller's
                return self._on_host(images, None)
        return self._on_device(torch.from_numpy(images).to(self._device), {})
