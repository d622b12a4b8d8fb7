"""What users ask about images: a bundle, or a run, that is loaded and stays so."""

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
from choral.data.loading.sample_pipeline import place
from choral.deploy.bundle.engine import Engine, Input, Member, Predicted, inputs_of
from choral.deploy.bundle.read import WEIGHTS, Bundle, BundledMember, read_bundle
from choral.inference.prediction_types import Answer
from choral.scoring.apply_policy import answers_of
from choral.scoring.policy import PredictionPolicy

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image as PillowImage

    from choral.inference.trained_models import TrainedModel

    Image = str | Path | bytes | PillowImage | NDArray[np.uint8]
    Images = list[Image] | tuple[Image, ...]

Form = Literal["torch", "onnx", "pt2"]
FORM_FILES = {"onnx": "model.onnx", "pt2": "model.pt2"}
"""Names in a bundle of the files that can be asked instead of its networks, in full precision."""


class Predictor:
    """Answers for images. Several threads may ask at the same time.

    Args:
        name: of the run that it comes from.
        answering: how members are heard, and what is decided.
        inputs: what images are prepared for.
        max_pixels: height x width above which no image is decoded.
        engine: that is asked.

    Example:
        predictor = choral.load("bundles/cells")
        answer = predictor.predict("cell.png")
        print(answer.label, answer.probability, answer.votes)
    """

    def __init__(
        self, name: str, answering: PredictionPolicy, inputs: Sequence[Input], max_pixels: int, engine: Engine
    ) -> None:
        self.name, self.answering, self.inputs = name, answering, tuple(inputs)
        self.max_pixels, self.engine = max_pixels, engine

    @classmethod
    def load(cls, path: str | Path, device: str = "auto", form: Form = "torch") -> Predictor:
        """Return what a bundle answers; every file of it is checked first.

        Args:
            path: of the folder.
            device: auto (a GPU where there is one), cpu, cuda, cuda:1 and so on; forms other than torch know cpu.
            form: torch: its networks. onnx, pt2: the file with the whole ensemble, where it was exported.

        Raises:
            ConfigError: there is no bundle, no such form, or no such device.
            DataError: a file is damaged.
        """
        return cls.of_bundle(read_bundle(Path(path)), device, form)

    @classmethod
    def of_bundle(cls, bundle: Bundle, device: str = "auto", form: Form = "torch") -> Predictor:
        """Return what a bundle answers that was read, and so checked, before; see `load`."""
        if form == "torch":
            from choral.deploy.bundle.graph import TorchEngine

            on = torch_device(device)
            engine: Engine = TorchEngine([load_member(member, on) for member in bundle.members], bundle.answering, on)
        else:
            engine = _form_engine(bundle, form)
        return cls(bundle.name, bundle.answering, bundle.inputs, bundle.max_pixels, engine)

    @classmethod
    def of_voices(
        cls,
        name: str,
        models: Sequence[TrainedModel],
        answering: PredictionPolicy,
        max_pixels: int,
        device: str = "auto",
    ) -> Predictor:
        """Return what trained networks of a run answer, as they are: nothing is fused.

        Args:
            name: of the run.
            voices: at least those that are heard.
            answering: how.
            max_pixels: as of the class.
            device: as of `load`.

        Raises:
            ChoralError: a checkpoint is damaged.
        """
        from choral.deploy.bundle.graph import TorchEngine

        on, by_name = torch_device(device), {model.name: model for model in models}
        heard = [by_name[member] for member in answering.members]
        members = [Member(model.name, model.load(on), model.input_spec, model.outputs) for model in heard]
        inputs = inputs_of([member.input_spec for member in members])
        return cls(name, answering, inputs, max_pixels, TorchEngine(members, answering, on))

    @property
    def task(self) -> str:
        """Multiclass, multilabel or regression."""
        return self.answering.task

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, labels or targets."""
        return self.answering.classes

    @property
    def members(self) -> tuple[str, ...]:
        """Names of the networks, in the order of `Predicted.by_member`."""
        return self.answering.members

    @overload
    def predict(self, images: Image, batch_size: int = 32) -> Answer: ...
    @overload
    def predict(self, images: Images, batch_size: int = 32) -> list[Answer]: ...
    def predict(self, images: Image | Images, batch_size: int = 32) -> Answer | list[Answer]:
        """Return the answer for an image, or a list of them for a list of images, in its order.

        Args:
            images: a path, the bytes of an image file, a Pillow image, an (H, W, 3) uint8 RGB or (H, W) uint8 grey array, or
                a list or tuple of such. EXIF orientation and transparency are treated as in training.
            batch_size: images at a time.

        Returns:
            A `ClassPrediction`, `MultilabelPrediction` or `RegressionPrediction`, by the task.

        Raises:
            ConfigError: a batch of less than one image.
            DataError: an image cannot be read; nothing is answered then, `choral predict` goes on.
        """
        if batch_size < 1:
            raise ConfigError(f"batch_size {batch_size}: expected at least 1")
        if not isinstance(images, list | tuple):
            return self._predict([images])[0]
        batches = (images[start : start + batch_size] for start in range(0, len(images), batch_size))
        return [answer for batch in batches for answer in self._predict(batch)]

    def _predict(self, images: Sequence[Image]) -> list[Answer]:
        names = [str(image) if isinstance(image, str | Path) else "" for image in images]
        return self.answers(names, self.ask([self.prepare(self.decode(image)) for image in images]))

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
            return _rgb_of(image)
        from PIL.Image import Image as PillowImage

        from choral.data.loading.decode import from_pillow

        if isinstance(image, PillowImage):
            return from_pillow(image, self.max_pixels)
        raise DataError(
            f"{type(image).__name__}: expected a path, bytes, a Pillow image or a (H, W, 3) or (H, W) uint8 array"
        )

    def can_read(self, image: Image) -> bool:
        """Return whether `decode` takes an image."""
        try:
            self.decode(image)
        except DataError:
            return False
        return True

    def prepare(self, image: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], ...]:
        """Return an image as the networks see it: of each input (S, S, 3) uint8, from (H, W, 3) uint8 RGB.

        These are bit for bit the pixels that training's loader makes for evaluation.
        """
        prepared = []
        for item in self.inputs:
            out = np.empty((item.form.size, item.form.size, 3), np.uint8)
            place(image, item.form.crop, item.form.resize, out)
            prepared.append(out)
        return tuple(prepared)

    def ask(self, prepared: Sequence[tuple[NDArray[np.uint8], ...]]) -> Predicted:
        """Return what is said about a batch of at least one prepared image."""
        return self.engine.ask([np.stack(images) for images in zip(*prepared, strict=True)])

    def answers(self, names: Sequence[str], predicted: Predicted) -> list[Answer]:
        """Return the answers for a batch, each with its image's name ("" where it has none)."""
        return answers_of(self.answering, names, predicted.by_member, predicted.combined)


def torch_device(name: str) -> torch.device:
    """Return a device by name; auto: a GPU where there is one.

    Raises:
        ConfigError: there is no such device here.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if re.fullmatch(r"(cpu|cuda)(:\d+)?", name) is None:
        raise ConfigError(f"device '{name}': expected auto, cpu, cuda or cuda:NUMBER")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device '{name}': there are {torch.cuda.device_count()} GPUs here")
    return device


_BUILDING = threading.Lock()  # timm's registry and torch's default generator are not made for several threads


def load_member(member: BundledMember, device: torch.device) -> Member:
    """Return a network of a bundle, its folded norms stripped."""
    from safetensors.torch import load_file

    from choral.config import ModelConfig
    from choral.deploy.bundle.fuse import strip
    from choral.models.build import restore_model

    config = ModelConfig(name=member.architecture, weights="none", channels_last=member.input_spec.channels_last)
    tensors = load_file(member.folder / WEIGHTS)
    with _BUILDING:
        try:
            network = restore_model(config, len(member.outputs.names), member.input_spec.form.size, tensors).eval()
        except RuntimeError as error:
            raise DataError(f"{member.folder / WEIGHTS}: does not fit {member.architecture}: {error}") from error
    strip(network, member.folded)
    return Member(member.name, network.to(device).eval(), member.input_spec, member.outputs)


def _form_engine(bundle: Bundle, form: str) -> Engine:
    if form not in FORM_FILES:
        raise ConfigError(f"form '{form}': expected torch, {' or '.join(FORM_FILES)}")
    if FORM_FILES[form] not in bundle.forms:
        raise ConfigError(f"{bundle.path}: has no form {form}; `choral export {bundle.path} --format {form}` adds it")
    from choral.deploy.bundle.forms import open_form

    return open_form(bundle.path / FORM_FILES[form])


def _rgb_of(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if image.dtype != np.uint8 or image.size == 0 or not (image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)):
        raise DataError(
            f"an array of {image.dtype} of shape {image.shape}: expected uint8 (H, W, 3) in the order RGB, or (H, W)"
        )
    return np.ascontiguousarray(image) if image.ndim == 3 else grey_to_rgb(np.ascontiguousarray(image))
