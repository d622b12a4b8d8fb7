"""The output directory of an export: complete, replacing an earlier export, or absent."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from choral.core.errors import ChoralError, ConfigError
from choral.core.files import atomic_folder
from choral.deploy.bundle.read import is_bundle


def check_output_dir(out: Path, force: bool) -> None:
    """Raise ConfigError unless a bundle may be written there: the path is free, or holds a bundle and `force` is set."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not is_bundle(out):
        raise ConfigError(f"{out}: exists and is not a bundle; choose another directory")
    if not force:
        raise ConfigError(f"{out}: exists; --force replaces it")


@contextmanager
def atomic_output_dir(out: Path) -> Iterator[Path]:
    """Yield a directory to fill that becomes `out` (see `atomic_folder`); ChoralError if writing fails."""
    try:
        with atomic_folder(out) as aside:
            yield aside
    except (OSError, SafetensorError) as error:
        raise ChoralError(f"{out}: cannot be written: {error}; what existed before is unchanged") from error
