"""Where an export puts a folder: it is there completely, in place of what an earlier export has left, or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from choral.core.errors import ChoralError, ConfigError
from choral.core.files import folder_aside
from choral.deploy.bundle.read import is_bundle


def check_place(out: Path, force: bool) -> None:
    """Raise ConfigError unless a bundle may be written there: nothing is, or with `force` a bundle."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not is_bundle(out):
        raise ConfigError(f"{out}: is there already, and is no bundle; choose another folder")
    if not force:
        raise ConfigError(f"{out}: is there already; --force replaces it")


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Give a folder to fill that becomes `out`, see `folder_aside`; ChoralError where the disk does not take it."""
    try:
        with folder_aside(out) as aside:
            yield aside
    except (OSError, SafetensorError) as error:
        raise ChoralError(f"{out}: cannot be written: {error}; what was there before is as it was") from error
