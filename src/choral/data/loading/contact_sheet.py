"""A contact sheet of augmented training samples, so that a person can look at what the network sees.

A row is a sample: as evaluation would show it, then as training shows it in its first epochs. It needs no network: the mean
and deviation that pictures are normalised with are undone again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from choral.config import AugmentConfig, Config
from choral.config.augment import PRESETS
from choral.core.errors import ConfigError
from choral.data.augment.host_transforms import check_host_transforms
from choral.data.augment.mixing import with_partners
from choral.data.loading.device_loader import Batch, DeviceLoader
from choral.data.loading.host_loader import BatchRequest
from choral.data.loading.input_pipeline import (
    RankPlace,
    Split,
    augmented_batches,
    open_dataset,
    open_split,
    plain_batches,
)
from choral.data.loading.targets import Targets

Pixels = NDArray[np.uint8]

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, which most networks were trained with
_PLACE = RankPlace(0, 1, torch.device("cpu"))
_CHOICE = 17  # which samples are shown does not depend on anything that training draws
_MARGIN, _GAP, _NEAR, _CELL = 28, 14, 5, 160
_TITLE_SIZE, _TEXT_SIZE, _LEADING = 20, 14, 1.35
_PAPER, _INK, _FAINT = (250, 250, 248), (28, 28, 30), (108, 108, 114)


@dataclasses.dataclass(frozen=True)
class _Cell:
    image: Pixels
    """(S, S, 3)"""
    caption: str


def contact_sheet(config: Config, out: Path | None, samples: int, epochs: int) -> Path:
    """Write the sheet and return its path.

    Args:
        config: of a run; its data have been packed.
        out: .png or .jpg; None: show-RUN.png, where the command runs.
        samples: rows; fewer where the split has fewer.
        epochs: augmented images a sample.

    Raises:
        ConfigError: numbers or a file name that make no sense, host transforms that cannot work.
        DataError: nothing is packed in `data.shards` (says how), or a sample cannot be read.
    """
    path = out or Path(f"show-{config.run}.png")
    if path.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise ConfigError(f"--out {path}: expected a name that ends in .png or .jpg")
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"--out {path}: there is no folder {path.parent}")
    if samples < 1 or epochs < 1:
        raise ConfigError(f"--samples {samples} --epochs {epochs}: expected at least 1")
    check_host_transforms(config.augment.host, config.data.image_size)
    rows = _rows(config, samples, epochs)
    heads = ["as evaluated", *(f"epoch {number}" for number in range(epochs))]
    sheet = _drawn(f"{config.run}: {_preset(config.augment)}", _switched_on(config.augment), heads, rows)
    sheet.save(path, quality=92, subsampling=0)  # PNG takes no notice of these
    return path


def _rows(config: Config, samples: int, epochs: int) -> list[list[_Cell]]:
    """Return the cells of each sample."""
    # A few images are read faster than a cache of all is built.
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, cache_gib=0, workers=0))
    split = _split_of(config)
    order = np.random.default_rng(_CHOICE).permutation(len(split))
    count = min(samples, len(split))
    chosen = order[: count + count % 2]  # everybody has a partner
    own = slice(0, count)
    read, partners = with_partners(chosen, own) if config.augment.mixes else (chosen[own], None)
    orders = [BatchRequest(read, epoch, 0, partners) for epoch in range(epochs)]
    plain = plain_batches(config, split, _PLACE, _MEAN, _STD, [BatchRequest(chosen[own], 0, 0)], None)
    changed = augmented_batches(config, split, _PLACE, _MEAN, _STD, orders, None)
    columns = [*_columns(plain, split), *_columns(changed, split)]
    return [list(row) for row in zip(*columns, strict=True)]


def _split_of(config: Config) -> Split:
    return open_split(config, open_dataset(config.data), config.data.train_split, _PLACE)


def _columns(loader: DeviceLoader, split: Split) -> Iterator[list[_Cell]]:
    with loader:
        for batch in loader:
            values = batch.images.permute(0, 2, 3, 1).numpy() * np.array(_STD) + np.array(_MEAN)
            pixels = np.rint(255 * np.clip(values, 0, 1)).astype(np.uint8)
            yield [_Cell(image, _caption(batch, at, split.targets)) for at, image in enumerate(pixels)]


def _caption(batch: Batch, at: int, targets: Targets) -> str:
    """Return what the sample is, and with what it is mixed in which shares."""
    own = _named(batch.labels[at].tolist(), targets)
    share = 100 if batch.shares is None else round(100 * float(batch.shares[at]))
    if batch.partners is None or share == 100:
        return own
    return f"{share} % {own}\n{100 - share} % {_named(batch.partners[at].tolist(), targets)}"


def _named(label: int | list[float], targets: Targets) -> str:
    if not isinstance(label, list):
        return targets.names[label]
    if targets.task == "multilabel":
        return ", ".join(name for name, value in zip(targets.names, label, strict=True) if value) or "no label"
    return ", ".join(f"{name} {value:.3g}" for name, value in zip(targets.names, label, strict=True))


def _preset(augment: AugmentConfig) -> str:
    preset = PRESETS[augment.preset]
    as_it_is = all(getattr(augment, key) == value for key, value in preset.items()) and not augment.host
    return f"augmentation preset {augment.preset}" + ("" if as_it_is else ", changed")


def _switched_on(augment: AugmentConfig) -> str:
    """Return what differs from no augmentation at all."""

    def shown(value: object) -> str:
        if isinstance(value, tuple):
            return " to ".join(map(shown, value))
        return f"{value:.3g}" if isinstance(value, float) else str(value)

    none = PRESETS["none"]
    changes = [(key, getattr(augment, key)) for key in none if getattr(augment, key) != none[key]]
    told = [key if value is True else f"{key} {shown(value)}" for key, value in changes]
    told += [f"host {transform.name}" for transform in augment.host]
    return "  ·  ".join(told) or "nothing is changed"


def _drawn(title: str, subtitle: str, heads: Sequence[str], rows: Sequence[Sequence[_Cell]]) -> Image.Image:
    large, text = (ImageFont.load_default(size) for size in (_TITLE_SIZE, _TEXT_SIZE))
    line = round(_TEXT_SIZE * _LEADING)
    side = _side(rows[0][0].image.shape[0])
    width = 2 * _MARGIN + len(heads) * side + (len(heads) - 1) * _GAP
    captions = [[_wrapped(cell.caption, text, side) for cell in row] for row in rows]
    under = _wrapped(subtitle, text, width - 2 * _MARGIN, most=4)
    top = _MARGIN + round(_TITLE_SIZE * _LEADING) + len(under) * line + _GAP
    heights = [side + _NEAR + line * max(map(len, row)) + _GAP for row in captions]
    sheet = Image.new("RGB", (width, top + line + _NEAR + sum(heights) + _MARGIN - _GAP), _PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((_MARGIN, _MARGIN), _wrapped(title, large, width - 2 * _MARGIN, most=1)[0], _INK, large)
    draw.text(
        (_MARGIN, _MARGIN + round(_TITLE_SIZE * _LEADING)), "\n".join(under), _FAINT, text, spacing=line - _TEXT_SIZE
    )
    for column, head in enumerate(heads):
        left = _MARGIN + column * (side + _GAP)
        draw.text((left, top), head, _FAINT, text)
        down = top + line + _NEAR
        for cells, texts, height in zip(rows, captions, heights, strict=True):
            sheet.paste(_sized(cells[column].image, side), (left, down))
            for number, words in enumerate(texts[column]):
                draw.text((left, down + side + _NEAR + number * line), words, _INK, text)
            down += height
    return sheet


def _side(size: int) -> int:
    """Return the side of a cell: small images are enlarged by a whole factor, very large ones halved, none is blurred."""
    while size >= 4 * _CELL:
        size //= 2
    return size * max(1, -(-_CELL // size) if size <= _CELL // 2 else 1)


def _sized(image: Pixels, side: int) -> Image.Image:
    how = Image.Resampling.NEAREST if side > image.shape[0] else Image.Resampling.LANCZOS
    picture = Image.fromarray(image)
    return picture if side == image.shape[0] else picture.resize((side, side), how)


def _wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int, most: int = 3) -> list[str]:
    """Return lines that fit the width, at most so many a line of `text`; what does not fit ends in an ellipsis."""
    found: list[str] = []
    for paragraph in text.split("\n"):
        lines = [""]
        for word in paragraph.split(" "):
            longer = f"{lines[-1]} {word}" if lines[-1] else word
            if lines[-1] and font.getlength(longer) > width:
                lines.append(word)
            else:
                lines[-1] = longer
        if len(lines) > most:
            lines = [*lines[: most - 1], " ".join(lines[most - 1 :])]
        found += [_cut(line, font, width) for line in lines]
    return found


def _cut(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"
