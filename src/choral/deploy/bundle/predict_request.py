"""What `choral predict` and launch/predict.py are asked to do, as both read it from the command line."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from choral.core.errors import ConfigError
from choral.deploy.bundle.image_sources import STDIN, Picture, check_words, counted, in_batches, pictures

if TYPE_CHECKING:
    from choral.deploy.bundle.predictor import Form, Predictor

FORMS = ("torch", "onnx", "pt2")


@dataclass(frozen=True)
class PredictRequest:
    """Images, and what is asked about them.

    Attributes:
        target: a bundle, or a run.
        images: words that name images; see `choral.deploy.bundle.image_sources`.
        out: the file that is written; None: nothing.
        batch_size: images at a time.
        workers: threads that prepare them; 0: as many as there are cores.
        device: as `Predictor.load` takes it.
        form: of a bundle.
        strict: whether an image that cannot be read ends it.
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
    def words(self) -> list[str]:
        """The command line that asks the same of another process."""
        words = [self.target, "--batch-size", str(self.batch_size), "--workers", str(self.workers)]
        words += ["--device", self.device, "--form", self.form, *(["--strict"] if self.strict else [])]
        return [*words, *(["--out", str(self.out)] if self.out else []), "--", *self.images]

    def open(self, say: Callable[[str], None], device: str = "") -> Predictor:
        """Return the predictor; errors as `open_predictor`."""
        from choral.deploy.bundle.open_predictor import open_predictor

        return open_predictor(self.target, device or self.device, self.form, say)

    def batches(self) -> tuple[int | None, Iterator[list[Picture]]]:
        """Return how many images there are, None where nobody knows, and them, `batch_size` at a time."""
        total, images = counted(pictures(self.images), self.images)
        return total, in_batches(images, self.batch_size)


def add_predict_arguments(parser: argparse.ArgumentParser) -> None:
    """Let a parser take what `predict_request` reads."""
    parser.add_argument("target", metavar="BUNDLE|RUN", help="what `choral export` wrote, or a run that is trained")
    parser.add_argument(
        "images",
        nargs="+",
        metavar="IMAGES",
        help="files, folders (with those below), globs, tars; - for a list on standard input, one a line; @LIST for one in a "
        "file",
    )
    parser.add_argument(
        "-o", "--out", metavar="FILE", default="", help="write a .csv, .jsonl or .parquet instead of a table"
    )
    parser.add_argument(
        "--batch-size", type=int, default=32, metavar="N", help="images at a time (default: %(default)s)"
    )
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="threads that decode (default: the cores)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 ... (default: a GPU, where there is one)")
    parser.add_argument(
        "--form", default="torch", choices=FORMS, help="of a bundle, what is asked (default: %(default)s)"
    )
    parser.add_argument("--strict", action="store_true", help="end at the first image that cannot be read")


def predict_request(options: argparse.Namespace) -> PredictRequest:
    """Return what parsed arguments ask for.

    Raises:
        ConfigError: a word that names no image, a number out of range, or a file that cannot be written.
    """
    from choral.deploy.bundle.prediction_files import check_suffix

    check_words(options.images)
    for name, value, least in (("--batch-size", options.batch_size, 1), ("--workers", options.workers, 0)):
        if value < least:
            raise ConfigError(f"{name} {value}: expected a whole number from {least}")
    out = None if options.out in ("", STDIN) else Path(os.path.expanduser(options.out))  # noqa: PTH111
    if out is not None:
        check_suffix(out)
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
