"""An ensemble in PyTorch: as an engine with the arithmetic of an evaluation, and as one module for export.

The engine combines predictions in NumPy. The module does everything from bytes to calibrated probabilities, so
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

from choral.data.loading.input_spec import InputSpec, distinct_image_specs
from choral.data.loading.normalize_cpu import CpuNormalizer
from choral.data.loading.normalize_device import DeviceNormalizer
from choral.deploy.bundle.combine_module import CombinationModule, register_constant
from choral.deploy.bundle.engine import EnsemblePredictions, LoadedMember
from choral.inference.predict_chunk import InferenceOptions, ViewAverage, predict_batch
from choral.inference.views.grammar import parse_view
from choral.inference.views.transforms import ViewModule
from choral.scoring.policy import PredictionPolicy


class TorchEngine:
    """Runs models on prepared images as an evaluation does, and combines their predictions as a ledger is combined.

    Members with equal input specs share their batch and its views. Safe to call from several threads.

    Args:
        members: the members of `policy`, in its order; their models are moved to the device.
        policy: combination and calibration.
        device: that computes.

    Raises:
        ValueError: these are not the members of the policy.
    """

    def __init__(self, members: Sequence[LoadedMember], policy: PredictionPolicy, device: torch.device | str) -> None:
        check_heard(members, policy)
        self._answering, self._device = policy, torch.device(device)
        self._image_specs = distinct_image_specs([member.input_spec for member in members])
        self._members = [(member.network.to(self._device).eval(), member.outputs) for member in members]
        self._groups = by_look(members)
        self._normalizers = {input_spec: _Normalizing(input_spec, self._device) for input_spec, _ in self._groups}
        self._options = build_inference_options(policy)

    def predict_batch(self, images: Sequence[NDArray[np.uint8]]) -> EnsemblePredictions:
        """Return the predictions for a batch; see `Engine.predict_batch`."""
        own: list[NDArray[np.float32] | None] = [None] * len(self._members)
        for input_spec, places in self._groups:
            batch = self._normalizers[input_spec](images[self._image_specs.index(input_spec.image_spec)])
            found = predict_batch([self._members[place] for place in places], input_spec, batch, self._options)
            for place, columns in zip(places, found, strict=True):
                own[place] = columns["tta"].cpu().numpy()
        by_member = np.stack([values for values in own if values is not None])
        return EnsemblePredictions(by_member, self._answering.combine(by_member))


class EnsembleGraph(nn.Module):
    """An ensemble from bytes to calibrated probabilities: normalisation, views, members, averages, rule and calibration.

    Equal to `TorchEngine` but for rounding, ties of votes included. All constants are buffers. The views of a batch are
    one larger batch, so that each network is there once, however many views there are: a graph of 24 passes takes minutes
    to export. Memory grows with batch times views.

    Args:
        members: the members of `policy`, in its order and in evaluation mode; their models become part of the graph.
        policy: combination and calibration.
        half: networks compute in half precision, copies of these; what is outside of them stays in single.

    Raises:
        ValueError: these are not the members of the policy.
    """

    def __init__(self, members: Sequence[LoadedMember], policy: PredictionPolicy, half: bool = False) -> None:
        super().__init__()
        check_heard(members, policy)
        self._image_specs = distinct_image_specs([member.input_spec for member in members])
        self._groups = by_look(members)
        self._options = build_inference_options(policy)
        self._outputs = [replace(member.outputs, target_mean=(), target_std=()) for member in members]
        self.preprocessors = nn.ModuleList(
            _ViewsOfInput(input_spec, self._options.views) for input_spec, _ in self._groups
        )
        self.networks = nn.ModuleList(_Member(member, half) for member in members)
        self.combined = CombinationModule(policy)
        self.eval()

    def forward(self, *images: Tensor) -> tuple[Tensor, Tensor]:
        """Predict a batch.

        Args:
            images: for each input, as `inputs_of` orders them, (B, S, S, 3) uint8 RGB.

        Returns:
            (B, C) float32 combined and calibrated predictions, and (B, M, C) float32 predictions of each member.
        """
        means = [ViewAverage(outputs, self._options) for outputs in self._outputs]
        views = self._options.views
        for preprocessors, (input_spec, places) in zip(self.preprocessors, self._groups, strict=True):
            seen = preprocessors(images[self._image_specs.index(input_spec.image_spec)])
            for place in places:
                logits = self.networks[place](seen).unflatten(0, (len(views), -1))
                for number, view in enumerate(views):
                    means[place].add(view, logits[number])
        own = torch.stack([mean.compute_columns()["tta"] for mean in means])
        return self.combined(own), own.transpose(0, 1)


class _ViewsOfInput(nn.Module):
    """Normalised images of one input spec under each view."""

    mean: Tensor
    std: Tensor

    def __init__(self, input_spec: InputSpec, views: Sequence[str]) -> None:
        super().__init__()
        size = input_spec.image_spec.size
        self.register_buffer("mean", torch.tensor(input_spec.mean, dtype=torch.float32).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(input_spec.std, dtype=torch.float32).view(3, 1, 1))
        self.views = nn.ModuleList(
            ViewModule(parse_view(view), size, size, input_spec.mean, input_spec.std) for view in views
        )
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

    def __init__(self, member: LoadedMember, half: bool) -> None:
        super().__init__()
        self.network = copy.deepcopy(member.network).half() if half else member.network
        for module in self.network.modules():
            if hasattr(module, "inplace"):
                # Exporting to ONNX would take each apart, which takes ten times as long as all the rest.
                module.inplace = False  # type: ignore[assignment]
        self._dtype = torch.float16 if half else torch.float32
        self._standardised = bool(member.outputs.target_std)
        register_constant(self, "mean", torch.tensor(member.outputs.target_mean, dtype=torch.float32))
        register_constant(self, "std", torch.tensor(member.outputs.target_std, dtype=torch.float32))

    def forward(self, images: Tensor) -> Tensor:
        """Return (B, C) float32 outputs of (B, 3, S, S) normalised images."""
        values: Tensor = self.network(images.to(self._dtype)).float()
        return values * self.std + self.mean if self._standardised else values


def check_heard(members: Sequence[LoadedMember], policy: PredictionPolicy) -> None:
    """Raise ValueError unless these are the members of the policy, in the order of the rule's weights."""
    names = tuple(member.name for member in members)
    if names != policy.members:
        raise ValueError(f"members {', '.join(names)}, expected {', '.join(policy.members)}")


def by_look(members: Sequence[LoadedMember]) -> list[tuple[InputSpec, list[int]]]:
    """Return the distinct input specs of members, and the positions of the members that share each."""
    input_specs = [member.input_spec for member in members]
    places = sorted(range(len(members)), key=lambda place: repr(input_specs[place]))
    return [(input_spec, list(own)) for input_spec, own in groupby(places, input_specs.__getitem__)]


def build_inference_options(policy: PredictionPolicy) -> InferenceOptions:
    """Return the inference options of a policy."""
    weights = tuple(policy.views.values())
    uneven = len(set(weights)) > 1
    return InferenceOptions(
        tuple(policy.views), ("tta",), nullcontext, policy.average, weights=weights if uneven else ()
    )


class _Normalizing:
    """Prepared bytes to normalised images, with the arithmetic of an evaluation on the same device."""

    def __init__(self, input_spec: InputSpec, device: torch.device) -> None:
        self._device, self._lock = device, Lock()
        self._on_device = DeviceNormalizer(input_spec.mean, input_spec.std, device, None, input_spec.channels_last)
        self._on_host = (
            CpuNormalizer(input_spec.mean, input_spec.std, input_spec.channels_last) if device.type == "cpu" else None
        )

    def __call__(self, images: NDArray[np.uint8]) -> Tensor:
        """Return (B, 3, S, S) float32 on the device, of (B, S, S, 3)."""
        if self._on_host is not None:
            with self._lock:  # its buffers are not for several threads; what it returned stays the caller's
                return self._on_host(images, None)
        return self._on_device(torch.from_numpy(images).to(self._device), {})
