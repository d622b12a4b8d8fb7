"""A contact sheet of augmented training samples, so that a person can see what the model is trained on.

Each row is a sample: preprocessed as in evaluation, then augmented as in the first epochs of training. It needs no
model: the normalization of the images is inverted before they are drawn.
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
from choral.data.augment.mixing import add_partners
from choral.data.loading.device_loader import Batch, DeviceLoader
from choral.data.loading.host_loader import BatchRequest
from choral.data.loading.input_pipeline import InputPipeline
from choral.data.loading.input_spec import Normalization
from choral.data.loading.rank_place import RankPlace
from choral.data.loading.split import Split, open_dataset, open_split
from choral.data.loading.targets import Targets

Pixels = NDArray[np.uint8]

# Of ImageNet. Any values would do: the normalization is inverted.
_NORMALIZATION = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_PLACE = RankPlace(0, 1, torch.device("cpu"))
_SAMPLE_SEED = 17  # samples are chosen independently of all random numbers of training
_MARGIN, _GAP, _CAPTION_GAP, _CELL_SIDE = 28, 14, 5, 160
_TITLE_SIZE, _TEXT_SIZE, _LINE_SPACING = 20, 14, 1.35
_BACKGROUND, _TEXT_COLOUR, _HEADING_COLOUR = (250, 250, 248), (28, 28, 30), (108, 108, 114)


@dataclasses.dataclass(frozen=True)
class _Cell:
    image: Pixels
    """(S, S, 3)"""
    caption: str


def write_contact_sheet(config: Config, out: Path | None, samples: int, epochs: int) -> Path:
    """Write the sheet and return its path.

    Args:
        config: of a run; its data must be packed.
        out: a .png or .jpg file; None: show-RUN.png in the working directory.
        samples: rows; fewer if the split has fewer.
        epochs: augmented images of each sample.

    Raises:
        ConfigError: `out`, `samples`, `epochs` or the host transforms are invalid.
        DataError: `data.shards` holds no packed data set, or a sample cannot be read.
    """
    path = out or Path(f"show-{config.run}.png")
    if path.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise ConfigError(f"--out {path}: expected a file name that ends in .png, .jpg or .jpeg")
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"--out {path}: folder {path.parent} does not exist")
    if samples < 1 or epochs < 1:
        raise ConfigError(f"--samples {samples} --epochs {epochs}: expected at least 1 of each")
    check_host_transforms(config.augment.host, config.data.image_size)
    rows = _load_rows(config, samples, epochs)
    headings = ["as evaluated", *(f"epoch {number}" for number in range(epochs))]
    sheet = _draw_sheet(
        f"{config.run}: {_describe_preset(config.augment)}", _describe_changes(config.augment), headings, rows
    )
    sheet.save(path, quality=92, subsampling=0)  # PNG ignores these arguments
    return path


def _load_rows(config: Config, samples: int, epochs: int) -> list[list[_Cell]]:
    """Return the cells of each sample."""
    # Reading a few images takes less time than building a cache of all.
    config = config.replace(data=config.data.replace(cache_gib=0, workers=0))
    split = _open_training_split(config)
    shuffled = np.random.default_rng(_SAMPLE_SEED).permutation(len(split))
    count = min(samples, len(split))
    chosen = shuffled[: count + count % 2]  # an even number, so that each sample has a mixing partner
    part = slice(0, count)
    rows, partners = add_partners(chosen, part) if config.augment.mixes else (chosen[part], None)
    requests = [BatchRequest(rows, epoch, 0, partners) for epoch in range(epochs)]
    pipeline = InputPipeline(config, split, _PLACE, _NORMALIZATION, bad_log=None)
    unaugmented = pipeline.unaugmented_batches([BatchRequest(chosen[part], 0, 0)])
    augmented = pipeline.augmented_batches(requests)
    columns = [*_load_columns(unaugmented, split), *_load_columns(augmented, split)]
    return [list(row) for row in zip(*columns, strict=True)]


def _open_training_split(config: Config) -> Split:
    return open_split(config, open_dataset(config.data), config.data.train_split, _PLACE)


def _load_columns(loader: DeviceLoader, split: Split) -> Iterator[list[_Cell]]:
    with loader:
        for batch in loader:
            mean, std = np.array(_NORMALIZATION.mean), np.array(_NORMALIZATION.std)
            values = batch.images.permute(0, 2, 3, 1).numpy() * std + mean
            pixels = np.rint(255 * np.clip(values, 0, 1)).astype(np.uint8)
            yield [_Cell(image, _caption(batch, position, split.targets)) for position, image in enumerate(pixels)]


def _caption(batch: Batch, position: int, targets: Targets) -> str:
    """Return the label of a sample, and of the sample mixed into it, with their shares."""
    label = _format_label(batch.labels[position].tolist(), targets)
    share = 100 if batch.shares is None else round(100 * float(batch.shares[position]))
    if batch.partners is None or share == 100:
        return label
    return f"{share} % {label}\n{100 - share} % {_format_label(batch.partners[position].tolist(), targets)}"


def _format_label(label: int | list[float], targets: Targets) -> str:
    if not isinstance(label, list):
        return targets.names[label]
    if targets.task == "multilabel":
        return ", ".join(name for name, value in zip(targets.names, label, strict=True) if value) or "no label"
    return ", ".join(f"{name} {value:.3g}" for name, value in zip(targets.names, label, strict=True))


def _describe_preset(augment: AugmentConfig) -> str:
    preset = PRESETS[augment.preset]
    unchanged = all(getattr(augment, key) == value for key, value in preset.items()) and not augment.host
    return f"augmentation preset {augment.preset}" + ("" if unchanged else ", changed")


def _describe_changes(augment: AugmentConfig) -> str:
    """Return the settings that differ from no augmentation."""

    def format_value(value: object) -> str:
        if isinstance(value, tuple):
            return " to ".join(map(format_value, value))
        return f"{value:.3g}" if isinstance(value, float) else str(value)

    none = PRESETS["none"]
    changes = [(key, getattr(augment, key)) for key in none if getattr(augment, key) != none[key]]
    parts = [key if value is True else f"{key} {format_value(value)}" for key, value in changes]
    parts += [f"host {transform.name}" for transform in augment.host]
    return "  ·  ".join(parts) or "no augmentation"


def _draw_sheet(title: str, subtitle: str, headings: Sequence[str], rows: Sequence[Sequence[_Cell]]) -> Image.Image:
    large, text = (ImageFont.load_default(size) for size in (_TITLE_SIZE, _TEXT_SIZE))
    line = round(_TEXT_SIZE * _LINE_SPACING)
    side = _cell_side(rows[0][0].image.shape[0])
    width = 2 * _MARGIN + len(headings) * side + (len(headings) - 1) * _GAP
    captions = [[_wrap(cell.caption, text, side) for cell in row] for row in rows]
    subtitle_lines = _wrap(subtitle, text, width - 2 * _MARGIN, max_lines=4)
    top = _MARGIN + round(_TITLE_SIZE * _LINE_SPACING) + len(subtitle_lines) * line + _GAP
    heights = [side + _CAPTION_GAP + line * max(map(len, row)) + _GAP for row in captions]
    sheet = Image.new("RGB", (width, top + line + _CAPTION_GAP + sum(heights) + _MARGIN - _GAP), _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    draw.text((_MARGIN, _MARGIN), _wrap(title, large, width - 2 * _MARGIN, max_lines=1)[0], _TEXT_COLOUR, large)
    draw.text(
        (_MARGIN, _MARGIN + round(_TITLE_SIZE * _LINE_SPACING)),
        "\n".join(subtitle_lines),
        _HEADING_COLOUR,
        text,
        spacing=line - _TEXT_SIZE,
    )
    for column, heading in enumerate(headings):
        left = _MARGIN + column * (side + _GAP)
        draw.text((left, top), heading, _HEADING_COLOUR, text)
        down = top + line + _CAPTION_GAP
        for cells, texts, height in zip(rows, captions, heights, strict=True):
            sheet.paste(_resize_to_cell(cells[column].image, side), (left, down))
            for number, caption in enumerate(texts[column]):
                draw.text((left, down + side + _CAPTION_GAP + number * line), caption, _TEXT_COLOUR, text)
            down += height
    return sheet


def _cell_side(size: int) -> int:
    """Return the side of a cell: small images are enlarged by a whole factor, large ones halved, so that none blurs."""
    while size >= 4 * _CELL_SIDE:
        size //= 2
    return size * max(1, -(-_CELL_SIDE // size) if size <= _CELL_SIDE // 2 else 1)


def _resize_to_cell(image: Pixels, side: int) -> Image.Image:
    resampling = Image.Resampling.NEAREST if side > image.shape[0] else Image.Resampling.LANCZOS
    picture = Image.fromarray(image)
    return picture if side == image.shape[0] else picture.resize((side, side), resampling)


def _wrap(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int, max_lines: int = 3) -> list[str]:
    """Break each line of `text` into at most `max_lines` lines that fit the width; the rest is cut with an ellipsis."""
    wrapped: list[str] = []
    for paragraph in text.split("\n"):
        lines = [""]
        for word in paragraph.split(" "):
            longer = f"{lines[-1]} {word}" if lines[-1] else word
            if lines[-1] and font.getlength(longer) > width:
                lines.append(word)
            else:
                lines[-1] = longer
        if len(lines) > max_lines:
            lines = [*lines[: max_lines - 1], " ".join(lines[max_lines - 1 :])]
        wrapped += [_truncate(line, font, width) for line in lines]
    return wrapped


def _truncate(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"
