"""A loaded bundle or run that predicts images: decode, prepare, forward passes, calibration, decision."""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, overload

import numpy as np
from numpy.typing import NDArray

from choral.core.errors import ConfigError, DataError
from choral.data.loading.decode import decode, grey_to_rgb
from choral.data.loading.sample_pipeline import resize_and_crop
from choral.deploy.bundle.engine import Engine, EngineInput, EnsemblePredictions, LoadedMember, build_engine_inputs
from choral.deploy.bundle.read import WEIGHTS_FILE, Bundle, BundledMember, read_bundle
from choral.inference.prediction_types import Prediction
from choral.scoring.apply_policy import apply_policy
from choral.scoring.policy import PredictionPolicy

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image as PillowImage

    from choral.inference.trained_model import TrainedModel

    Image = str | Path | bytes | PillowImage | NDArray[np.uint8]
    Images = list[Image] | tuple[Image, ...]

Form = Literal["torch", "onnx", "pt2"]
FORM_FILES = {"onnx": "model.onnx", "pt2": "model.pt2"}
"""The exported files in a bundle that run in place of its models, in full precision."""


class Predictor:
    """Predicts images. Several threads may call it at the same time.

    Args:
        name: name of the run that it comes from.
        policy: combination, calibration and decision.
        inputs: the prepared arrays that the engine takes.
        max_pixels: height x width above which no image is decoded.
        engine: runs the models.

    Example:
        predictor = choral.load("bundles/cells")
        prediction = predictor.predict("cell.png")
        print(prediction.label, prediction.probability, prediction.votes)
    """

    def __init__(
        self, name: str, policy: PredictionPolicy, inputs: Sequence[EngineInput], max_pixels: int, engine: Engine
    ) -> None:
        self.name, self.policy, self.inputs = name, policy, tuple(inputs)
        self.max_pixels, self.engine = max_pixels, engine

    @classmethod
    def load(cls, path: str | Path, device: str = "auto", form: Form = "torch") -> Predictor:
        """Load a bundle; the checksum of every file is verified first.

        Args:
            path: the directory of the bundle.
            device: "auto" (a GPU if there is one), "cpu", "cuda", "cuda:1" and so on; "onnx" and "pt2" run on the CPU.
            form: "torch" runs its models; "onnx" and "pt2" run the exported file of the whole ensemble.

        Raises:
            ConfigError: there is no bundle, no such exported file, or no such device.
            DataError: a file is damaged.
        """
        return cls.from_bundle(read_bundle(Path(path)), device, form)

    @classmethod
    def from_bundle(cls, bundle: Bundle, device: str = "auto", form: Form = "torch") -> Predictor:
        """Return the predictor of a bundle that `read_bundle` has verified; see `load`."""
        if form == "torch":
            from choral.deploy.bundle.graph import TorchEngine

            on = resolve_device(device)
            engine: Engine = TorchEngine([load_member(member, on) for member in bundle.members], bundle.policy, on)
        else:
            engine = _open_exported_engine(bundle, form)
        return cls(bundle.name, bundle.policy, bundle.inputs, bundle.max_pixels, engine)

    @classmethod
    def from_models(
        cls,
        name: str,
        models: Sequence[TrainedModel],
        policy: PredictionPolicy,
        max_pixels: int,
        device: str = "auto",
    ) -> Predictor:
        """Return the predictor of trained models of a run; BatchNorm is not folded.

        Args:
            name: of the run.
            models: at least the members of the policy.
            policy: combination, calibration and decision.
            max_pixels: as of the class.
            device: as of `load`.

        Raises:
            ChoralError: a checkpoint is damaged.
        """
        from choral.deploy.bundle.graph import TorchEngine

        on, by_name = resolve_device(device), {model.name: model for model in models}
        selected = [by_name[member] for member in policy.members]
        members = [LoadedMember(model.name, model.load(on), model.input_spec, model.outputs) for model in selected]
        inputs = build_engine_inputs([member.input_spec for member in members])
        return cls(name, policy, inputs, max_pixels, TorchEngine(members, policy, on))

    @property
    def task(self) -> str:
        """ "multiclass", "multilabel" or "regression"."""
        return self.policy.task

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, labels or targets."""
        return self.policy.classes

    @property
    def members(self) -> tuple[str, ...]:
        """Names of the members, in the order of `EnsemblePredictions.by_member`."""
        return self.policy.members

    @overload
    def predict(self, images: Image, batch_size: int = 32) -> Prediction: ...
    @overload
    def predict(self, images: Images, batch_size: int = 32) -> list[Prediction]: ...
    def predict(self, images: Image | Images, batch_size: int = 32) -> Prediction | list[Prediction]:
        """Return the prediction of an image, or a list of predictions for a list of images, in its order.

        Args:
            images: a path, the bytes of an image file, a Pillow image, an (H, W, 3) uint8 RGB or (H, W) uint8 grey array, or
                a list or tuple of such. EXIF orientation and transparency are treated as in training.
            batch_size: images at a time.

        Returns:
            A `ClassPrediction`, `MultilabelPrediction` or `RegressionPrediction`, depending on the task.

        Raises:
            ConfigError: `batch_size` is below 1.
            DataError: an image cannot be read; nothing is returned then (`choral predict` skips such images instead).
        """
        if batch_size < 1:
            raise ConfigError(f"batch_size {batch_size}: expected at least 1")
        if not isinstance(images, list | tuple):
            return self._predict([images])[0]
        batches = (images[start : start + batch_size] for start in range(0, len(images), batch_size))
        return [prediction for batch in batches for prediction in self._predict(batch)]

    def _predict(self, images: Sequence[Image]) -> list[Prediction]:
        names = [str(image) if isinstance(image, str | Path) else "" for image in images]
        return self.build_predictions(names, self.predict_batch([self.prepare(self.decode(image)) for image in images]))

    def decode(self, image: Image) -> NDArray[np.uint8]:
        """Return an image as (H, W, 3) uint8 RGB; see `predict` and `choral.data.loading.decode`.

        Raises:
            DataError: it cannot be read, naming the file, if it is one.
        """
        if isinstance(image, str | Path):
            try:
                return decode(Path(image).read_bytes(), max_pixels=self.max_pixels)
            except OSError as error:
                raise DataError(f"{image}: {error.strerror or error}") from error
            except DataError as error:
                raise DataError(f"{image}: {error}") from error
        if isinstance(image, bytes | bytearray | memoryview):
            return decode(bytes(image), max_pixels=self.max_pixels)
        if isinstance(image, np.ndarray):
            return _to_rgb(image)
        from PIL.Image import Image as PillowImage

        from choral.data.loading.decode import from_pillow

        if isinstance(image, PillowImage):
            return from_pillow(image, self.max_pixels)
        raise DataError(
            f"{type(image).__name__}: expected a path, bytes, a Pillow image or a (H, W, 3) or (H, W) uint8 array"
        )

    def can_read(self, image: Image) -> bool:
        """Return whether `decode` can read an image."""
        try:
            self.decode(image)
        except DataError:
            return False
        return True

    def prepare(self, image: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], ...]:
        """Return the (S, S, 3) uint8 array of each input, from an (H, W, 3) uint8 RGB image.

        The pixels equal those of the evaluation loader bit for bit.
        """
        prepared = []
        for item in self.inputs:
            out = np.empty((item.image_spec.size, item.image_spec.size, 3), np.uint8)
            resize_and_crop(image, item.image_spec.crop, item.image_spec.resize, out)
            prepared.append(out)
        return tuple(prepared)

    def predict_batch(self, prepared: Sequence[tuple[NDArray[np.uint8], ...]]) -> EnsemblePredictions:
        """Return the predictions for a batch of at least one prepared image."""
        return self.engine.predict_batch([np.stack(images) for images in zip(*prepared, strict=True)])

    def build_predictions(self, names: Sequence[str], predicted: EnsemblePredictions) -> list[Prediction]:
        """Return a batch as typed predictions, each with its image's name ("" if it has none)."""
        return apply_policy(self.policy, names, predicted.by_member, predicted.combined)


def resolve_device(name: str) -> torch.device:
    """Return a device by name; "auto" is a GPU if there is one.

    Raises:
        ConfigError: this machine has no such device.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if re.fullmatch(r"(cpu|cuda)(:\d+)?", name) is None:
        raise ConfigError(f"device '{name}': expected auto, cpu, cuda or cuda:NUMBER")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device '{name}': this machine has {torch.cuda.device_count()} GPUs")
    return device


_BUILDING = threading.Lock()  # timm's registry and torch's default generator are not thread-safe


def load_member(member: BundledMember, device: torch.device) -> LoadedMember:
    """Load a model of a bundle and remove its folded BatchNorms."""
    from safetensors.torch import load_file

    from choral.config import ModelConfig
    from choral.deploy.bundle.fuse import strip
    from choral.models.build import restore_model

    config = ModelConfig(name=member.architecture, weights="none", channels_last=member.input_spec.channels_last)
    tensors = load_file(member.folder / WEIGHTS_FILE)
    with _BUILDING:
        try:
            network = restore_model(
                config, len(member.outputs.names), member.input_spec.image_spec.size, tensors
            ).eval()
        except RuntimeError as error:
            raise DataError(f"{member.folder / WEIGHTS_FILE}: does not fit {member.architecture}: {error}") from error
    strip(network, member.folded)
    return LoadedMember(member.name, network.to(device).eval(), member.input_spec, member.outputs)


def _open_exported_engine(bundle: Bundle, form: str) -> Engine:
    if form not in FORM_FILES:
        raise ConfigError(f"form '{form}': expected torch, {' or '.join(FORM_FILES)}")
    if FORM_FILES[form] not in bundle.forms:
        raise ConfigError(
            f"{bundle.path}: has no {FORM_FILES[form]}; `choral export {bundle.path} --format {form}` adds it"
        )
    from choral.deploy.bundle.forms import open_form

    return open_form(bundle.path / FORM_FILES[form])


def _to_rgb(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if image.dtype != np.uint8 or image.size == 0 or not (image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)):
        raise DataError(
            f"an array of dtype {image.dtype} and shape {image.shape}: expected uint8 (H, W, 3) RGB, or (H, W)"
        )
    return np.ascontiguousarray(image) if image.ndim == 3 else grey_to_rgb(np.ascontiguousarray(image))
