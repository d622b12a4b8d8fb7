"""The request of `choral predict` and launch/predict.py, and its command line."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from choral.core.errors import ConfigError
from choral.deploy.bundle.image_sources import (
    STDIN,
    ImageSource,
    batch_images,
    check_image_arguments,
    count_images,
    find_images,
)

if TYPE_CHECKING:
    from choral.deploy.bundle.predictor import Form, Predictor

FORMS = ("torch", "onnx", "pt2")


@dataclass(frozen=True)
class PredictRequest:
    """Images to predict, and how.

    Attributes:
        target: a bundle or a run.
        images: arguments that name images; see `choral.deploy.bundle.image_sources`.
        out: the file to write; None: print only.
        batch_size: images per batch.
        workers: threads that prepare images; 0: one per core.
        device: as `Predictor.load` takes it.
        form: see `Predictor.load`.
        strict: whether an unreadable image is an error.
    """

    target: str
    images: tuple[str, ...]
    out: Path | None = None
    batch_size: int = 32
    workers: int = 0
    device: str = "auto"
    form: Form = "torch"
    strict: bool = False

    @property
    def arguments(self) -> list[str]:
        """The command line of the same request for another process."""
        arguments = [self.target, "--batch-size", str(self.batch_size), "--workers", str(self.workers)]
        arguments += ["--device", self.device, "--form", self.form, *(["--strict"] if self.strict else [])]
        return [*arguments, *(["--out", str(self.out)] if self.out else []), "--", *self.images]

    def open(self, report: Callable[[str], None], device: str = "") -> Predictor:
        """Return the predictor; errors as `open_predictor`."""
        from choral.deploy.bundle.open_predictor import open_predictor

        return open_predictor(self.target, device or self.device, self.form, report)

    def batches(self) -> tuple[int | None, Iterator[list[ImageSource]]]:
        """Return the number of images (None if unknown) and the batches of images."""
        total, images = count_images(find_images(self.images), self.images)
        return total, batch_images(images, self.batch_size)


def add_predict_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that `predict_request` reads."""
    parser.add_argument("target", metavar="BUNDLE|RUN", help="a bundle that `choral export` wrote, or a trained run")
    parser.add_argument(
        "images",
        nargs="+",
        metavar="IMAGES",
        help="files, directories (recursively), globs, tars; - for a list on standard input, one per line; @FILE for a list "
        "in a file",
    )
    parser.add_argument(
        "-o", "--out", metavar="FILE", default="", help="write a .csv, .jsonl or .parquet instead of a table"
    )
    parser.add_argument(
        "--batch-size", type=int, default=32, metavar="N", help="images per batch (default: %(default)s)"
    )
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="decoding threads (default: one per core)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 ... (default: a GPU if there is one)")
    parser.add_argument(
        "--form",
        default="torch",
        choices=FORMS,
        help="what runs a bundle: its models, or an exported file (default: %(default)s)",
    )
    parser.add_argument("--strict", action="store_true", help="stop at the first unreadable image, and write nothing")


def predict_request(options: argparse.Namespace) -> PredictRequest:
    """Return the request of parsed arguments.

    Raises:
        ConfigError: a word that names no image, a number out of range, or a file that cannot be written.
    """
    from choral.deploy.bundle.prediction_files import check_output_path

    check_image_arguments(options.images)
    for name, value, least in (("--batch-size", options.batch_size, 1), ("--workers", options.workers, 0)):
        if value < least:
            raise ConfigError(f"{name} {value}: expected a whole number from {least}")
    out = None if options.out in ("", STDIN) else Path(os.path.expanduser(options.out))  # noqa: PTH111
    if out is not None:
        check_output_path(out)
    return PredictRequest(
        options.target,
        tuple(options.images),
        out,
        options.batch_size,
        options.workers,
        options.device,
        cast("Form", options.form),
        options.strict,
    )
