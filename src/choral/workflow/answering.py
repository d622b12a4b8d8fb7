"""What the trained members of a run answer for image files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from choral.predict.voices import voices_of
from choral.runfolder import RunFolder
from choral.workflow.evaluation import say_absent

if TYPE_CHECKING:
    from choral.predict.answers import Answer


def predict(folder: RunFolder, images: Sequence[Path]) -> Iterator[Answer]:
    """Yield what the trained members of a run answer for each image file.

    Raises:
        ChoralError: no member is trained.
    """
    import torch

    from choral.predict.images import predict_images

    config = folder.config()
    voices, _ = voices_of(folder, config)
    say_absent(folder, config)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    yield from predict_images(config, voices, images, device)
