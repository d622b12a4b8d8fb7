"""Training and service see the same pixels: what the loader makes of awkward images, and what a predictor makes of the same
bytes, is equal bit for bit."""

from __future__ import annotations

import io
import itertools
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from choral.config import DataConfig
from choral.core.errors import DataError
from choral.data.loading.crop import Crop
from choral.data.loading.decode import MAX_PIXELS
from choral.data.loading.decoded_cache import DecodedCache
from choral.data.loading.host_loader import BatchRequest
from choral.data.loading.host_stage import HostStage
from choral.data.loading.input_spec import ImageSpec, InputSpec, distinct_image_specs
from choral.data.loading.rank_place import RankPlace
from choral.data.loading.split import Split, open_dataset
from choral.data.loading.targets import Targets
from choral.data.packing.options import PackOptions
from choral.data.packing.pack import pack
from choral.data.shards.index import Index
from choral.data.shards.store import LocalStore
from choral.deploy.bundle.engine import EnsemblePredictions, build_engine_inputs
from choral.deploy.bundle.predictor import Predictor
from choral.scoring.apply_policy import build_default_policy

FORMS = [
    ImageSpec(size, crop, resize)
    for size, crop, resize in itertools.product(
        (24, 37), (Crop("resized"), Crop("center", crop_pct=0.875), Crop("center", crop_pct=1.0)), ("antialias", "fast")
    )
]
LOOKS = [InputSpec(form, (0.5,) * 3, (0.25,) * 3) for form in FORMS]


def colours(height: int, width: int, channels: int, seed: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def stored(image: Image.Image, kind: str, orientation: int = 1) -> bytes:
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(buffer, kind, **({"exif": exif} if orientation > 1 else {}))
    return buffer.getvalue()


def awkward() -> dict[str, bytes]:
    """Return encoded images of all kinds, by file name; each has its own odd size."""
    pixels = Image.fromarray(colours(41, 67, 3, 0))
    deep = np.random.default_rng(1).integers(0, 65536, (45, 31), dtype=np.uint16)
    alpha, paint = colours(53, 29, 4, 2), colours(33, 47, 4, 3)
    found = {
        "grey.jpg": stored(Image.fromarray(colours(50, 35, 1, 4)[..., 0]), "JPEG"),
        "grey.png": stored(Image.fromarray(colours(19, 23, 1, 5)[..., 0]), "PNG"),
        "alpha.png": stored(Image.fromarray(alpha), "PNG"),
        "alpha.webp": stored(Image.fromarray(alpha), "WEBP"),
        "cmyk.jpg": stored(Image.fromarray(paint, "CMYK"), "JPEG"),
        "deep.png": stored(Image.fromarray(deep), "PNG"),
        "deep.tif": stored(Image.fromarray(deep), "TIFF"),
        "palette.gif": stored(pixels.quantize(17), "GIF"),
        "one bit.png": stored(pixels.convert("1"), "PNG"),
        "tall.png": stored(Image.fromarray(colours(301, 7, 3, 6)), "PNG"),
        "tiny.bmp": stored(Image.fromarray(colours(1, 1, 3, 7)), "BMP"),
        "exact.png": stored(Image.fromarray(colours(24, 24, 3, 8)), "PNG"),
    }
    for orientation in range(2, 9):
        image = Image.fromarray(colours(40 + orientation, 70 - orientation, 3, 10 + orientation))
        found[f"turned {orientation}.jpg"] = stored(image, "JPEG", orientation)
    found["turned.png"] = stored(Image.fromarray(colours(21, 34, 3, 20)), "PNG", 6)
    return found


class Mute:
    """An engine that nobody asks."""

    def predict_batch(self, images: object) -> EnsemblePredictions:
        raise AssertionError


def predictor(input_specs: list[InputSpec]) -> Predictor:
    policy = build_default_policy("multiclass", ["a", "b"], ["m"], ["identity"])
    return Predictor("made", policy, build_engine_inputs(input_specs), MAX_PIXELS, Mute())


@pytest.fixture(scope="module")
def shards_of_awkward(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("awkward")
    for number, (name, data) in enumerate(awkward().items()):
        path = root / "photos" / f"class {number % 2}" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    options = PackOptions(val=0, test=0, samples_per_shard=7, processes=1)
    pack(str(root / "photos"), root / "shards", options)
    return root / "shards"


@pytest.mark.parametrize(
    ("workers", "kind", "cached"), [(0, "thread", True), (2, "thread", False), (1, "process", False)]
)
def test_loader_and_predictor_agree_on_every_bit(
    shards_of_awkward: Path, tmp_path: Path, workers: int, kind: str, cached: bool
) -> None:
    config = DataConfig(shards=str(shards_of_awkward), workers=workers, worker_kind=kind)  # type: ignore[arg-type]
    dataset = open_dataset(config)
    index, store = Index.open(dataset, "train"), LocalStore(dataset)
    cache = DecodedCache.open_or_build(index, store, tmp_path, 1.0, 1, MAX_PIXELS) if cached else None
    assert (cache is not None) == cached
    split = Split(index, store, cache, Targets("multiclass", tuple(dataset.classes), index))
    place = RankPlace(0, 1, None)  # type: ignore[arg-type] - nothing is copied to a device
    orders = [BatchRequest(rows, 0, step) for step, rows in enumerate(np.array_split(np.arange(len(index)), 4))]
    requested = predictor(LOOKS)
    shard, offset, length = (index.column(name) for name in ("shard", "offset", "length"))
    seen = 0
    stage = HostStage(config, split, place, tmp_path / "bad.jsonl")
    with stage.load(orders, distinct_image_specs(LOOKS)) as loader:
        for batch in loader:
            assert batch.valid.all() and len(batch.all_images) == len(FORMS)
            for position, row in enumerate(batch.rows.tolist()):
                data = store.read(int(shard[row]), int(offset[row]), int(length[row]))
                prepared = requested.prepare(requested.decode(data))
                for form, ours, theirs in zip(FORMS, prepared, batch.all_images, strict=True):
                    assert ours.dtype == np.uint8 and ours.shape == (form.size, form.size, 3)
                    np.testing.assert_array_equal(ours, theirs[position], err_msg=f"{index.keys([row])} {form}")
                seen += 1
            batch.release()
    assert seen == len(awkward())


def test_an_image_that_no_memory_could_hold_once_it_is_resized_is_refused() -> None:
    ribbon = np.zeros((1, 3_000_000, 3), np.uint8)
    with pytest.raises(DataError, match="image of 3000000 x 1 pixels is too thin: a central square of 224 x 224"):
        predictor([InputSpec(ImageSpec(224, Crop("center"), "fast"), (0.5,) * 3, (0.25,) * 3)]).prepare(ribbon)
