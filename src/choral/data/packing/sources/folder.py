"""A folder of class folders, optionally below train, val and test folders."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from choral.core.errors import DataError
from choral.data.packing.sources.base import IMAGE_SUFFIXES, SPLIT_NAMES, FileReader, ImageSource, make_sample_key

_IGNORED = {"thumbs.db", "desktop.ini"}  # written by file managers on Windows


class _File(NamedTuple):
    path: str  # relative to the data folder
    size: int


def open_folder(root: Path) -> ImageSource:
    """Return the images of ROOT/CLASS/**, or of ROOT/{train,val,test}/CLASS/**; classes are the sorted folder names.

    Hidden files are skipped.

    Raises:
        DataError: a file that is not an image, an image outside class folders, a class without images, fewer than two
            classes.
    """
    split_folders = _split_folders(root)
    found: list[tuple[str | None, str, _File]] = []  # split, class, file
    for split, base in split_folders.items():
        for name, files in _class_folders(root, root / base).items():
            found += [(split or None, name, file) for file in files]
    classes = tuple(sorted({name for _, name, _ in found}))
    if len(classes) < 2:
        raise DataError(f"{root}: {len(classes)} class folders, expected at least two: one folder of images per class")
    ids = {name: number for number, name in enumerate(classes)}
    columns: dict[str, pa.Array] = {
        "key": pa.array([make_sample_key(file.path) for _, _, file in found], pa.string()),
        "location": pa.array([file.path for _, _, file in found], pa.string()),
        "size": pa.array([file.size for _, _, file in found], pa.int64()),
        "label": pa.array([ids[name] for _, name, _ in found], pa.int64()),
        "path": pa.array([file.path for _, _, file in found], pa.string()),
    }
    if "" not in split_folders:
        columns["split"] = pa.array([split for split, _, _ in found], pa.string())
    return ImageSource(
        name=root.name,
        classes=classes,
        samples=pa.table(columns),
        reader=FileReader(str(root)),
        provenance={"kind": "folder", "path": str(root)},
    )


def _split_folders(root: Path) -> dict[str, str]:
    """Return split -> folder name, or {"": ""} if the class folders are directly in `root`.

    A class may be named train (beside bus and car): a folder is a split only if it contains folders.
    """
    folders = [entry.name for entry in _visible(root) if entry.is_dir()]
    splits = {SPLIT_NAMES[name.lower()]: name for name in folders if name.lower() in SPLIT_NAMES}
    if not any(entry.is_dir() for name in splits.values() for entry in _visible(root / name)):
        return {"": ""}
    if others := sorted(set(folders) - set(splits.values())):
        raise DataError(
            f"{root}: has {others[0]!r} beside {min(splits.values())!r}: "
            "expected either class folders, or only train, val and test with class folders in them"
        )
    return splits


def _class_folders(root: Path, base: Path) -> dict[str, list[_File]]:
    classes: dict[str, list[_File]] = {}
    for entry in _visible(base):
        if not entry.is_dir():
            reason = "an image outside the class folders" if _is_image(entry.name) else _not_an_image(entry.name)
            raise DataError(f"{entry.path}: {reason}")
        files: list[_File] = []
        _collect(root, entry.path, files, ())
        if not files:
            raise DataError(f"{entry.path}: class folder without images: add images or remove the folder")
        classes[entry.name] = files
    return classes


def _collect(root: Path, folder: str, files: list[_File], ancestors: tuple[tuple[int, int], ...]) -> None:
    """Append the images below `folder` to `files`; `ancestors` (device, inode) detect cycles of links."""
    status = Path(folder).stat()
    identity = (status.st_dev, status.st_ino)
    if identity in ancestors:
        raise DataError(f"{folder}: a link to one of its parent folders: remove the link")
    for entry in _visible(Path(folder)):
        if entry.is_dir():
            _collect(root, entry.path, files, (*ancestors, identity))
            continue
        if not _is_image(entry.name):
            raise DataError(f"{entry.path}: {_not_an_image(entry.name)}")
        try:
            size = entry.stat().st_size
        except OSError as error:
            raise DataError(f"{entry.path}: cannot be read ({error.strerror})") from error
        files.append(_File(os.path.relpath(entry.path, root), size))


def _visible(folder: Path) -> list[os.DirEntry[str]]:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror})") from error
    visible = [entry for entry in entries if not entry.name.startswith(".") and entry.name.lower() not in _IGNORED]
    for entry in visible:
        try:
            entry.name.encode()
        except UnicodeEncodeError:
            raise DataError(f"{folder}: the name {os.fsencode(entry.name)!r} is not UTF-8: rename it") from None
    return visible


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_SUFFIXES)


def _not_an_image(name: str) -> str:
    if name.lower().endswith((".csv", ".tsv", ".parquet")):
        return "not an image; to pack the images of this manifest, pass the manifest as the source, not its folder"
    return "not an image (.jpg .png .webp .gif .bmp .tif): move it out of the source, or hide it with a leading dot"
