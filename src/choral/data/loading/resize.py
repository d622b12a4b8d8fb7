"""Resizing of images, on one thread.

"antialias" is torch's uint8 kernel on a channels-last view (0.26 ms for 224 x 224, half of its time on planes). It
stays within one level of Pillow, with which timm evaluates. "fast" is OpenCV's linear interpolation without
antialiasing: half the time, but two levels off on average, and more for images that shrink strongly.
"""

from __future__ import annotations

from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

Resize = Literal["antialias", "fast"]


def resize_into(image: NDArray[np.uint8], out: NDArray[np.uint8], resize: Resize) -> None:
    """Resize an image into `out`.

    Args:
        image: (h, w, 3) uint8; need not be contiguous, as a part of a larger image is not.
        out: output, (H, W, 3) uint8, C-contiguous.
        resize: "antialias" or "fast".
    """
    if image.shape == out.shape:
        np.copyto(out, image)
    elif resize == "fast":
        cv2.resize(image, (out.shape[1], out.shape[0]), dst=out, interpolation=cv2.INTER_LINEAR)
    else:
        _antialias(image, out)


def _antialias(image: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
    import torch  # imported here: processes that only decode or use "fast" start without torch
    from torch.nn.functional import interpolate

    # Copy parts of larger images and read-only images: the kernel needs contiguous, writeable memory.
    if not (image.flags.c_contiguous and image.flags.writeable):
        image = image.copy()
    # Add the batch axis before permuting: only then does torch detect channels_last, and keeps it in the result.
    planes = torch.from_numpy(image)[None].permute(0, 3, 1, 2)
    resized = interpolate(planes, out.shape[:2], mode="bilinear", antialias=True)
    np.copyto(out, resized[0].permute(1, 2, 0).numpy())
