"""Views for test-time augmentation: named, deterministic transforms of a batch of images.

The eight symmetries of the square are the dihedral group D4. Only methods of the tensor are used and torch is imported
for type checking alone, so that a configuration's views can be validated on a machine without torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from choral.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from torch import Tensor

_VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda images: images,
    "hflip": lambda images: images.flip(-1),
    "vflip": lambda images: images.flip(-2),
    "rot90": lambda images: images.transpose(-2, -1).flip(-2),
    "rot180": lambda images: images.flip(-2, -1),
    "rot270": lambda images: images.transpose(-2, -1).flip(-1),
    "transpose": lambda images: images.transpose(-2, -1),
    "antitranspose": lambda images: images.transpose(-2, -1).flip(-2, -1),
}
_GROUPS = {"d4": tuple(_VIEWS)}
_SWAP_SIDES = frozenset({"rot90", "rot270", "transpose", "antitranspose"})


def expand(names: Sequence[str] | str) -> tuple[str, ...]:
    """Return the views that names of views and groups ("d4": all eight) stand for, in order, each one once.

    A view named twice counts once: its weight in the mean would otherwise depend on how the list was written.

    Raises:
        ConfigError: an unknown name (the nearest is shown), or no view at all.
    """
    views: dict[str, None] = {}
    for name in [names] if isinstance(names, str) else names:
        if name not in _VIEWS and name not in _GROUPS:
            known = [*_VIEWS, *_GROUPS]
            raise ConfigError(
                f"views: unknown view {name!r}.{did_you_mean(name, known)} Known views: {', '.join(known)}"
            )
        views.update(dict.fromkeys(_GROUPS.get(name, (name,))))
    if not views:
        raise ConfigError("views: an empty list; name at least one view, for instance identity")
    return tuple(views)


def apply_view(images: Tensor, view: str) -> Tensor:
    """Return the images as `view` shows them; `identity` and `transpose` share memory with `images`.

    Args:
        images: (B, C, H, W), any dtype and device. Rotations turn counter-clockwise; `transpose` mirrors at the main
            diagonal (top left to bottom right), `antitranspose` at the other one.
        view: a name that `expand` returned.

    Returns:
        (B, C, H, W), the same dtype and device.

    Raises:
        ConfigError: the view swaps height and width, but the images are not square.
    """
    height, width = images.shape[-2:]
    if view in _SWAP_SIDES and height != width:
        raise ConfigError(f"views: {view} needs square images, these are {height} x {width} (height x width)")
    return _VIEWS[view](images)
