"""Which images, and how they are read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from choral.config.fields import check, is_fraction, tuning

Task = Literal["multiclass", "multilabel", "regression"]


@dataclass(frozen=True, kw_only=True)
class PackConfig:
    """How `choral run` packs `data.source`; see `choral pack --help`."""

    val: float | None = None
    """Fraction of all samples for validation; null: what the source recommends."""
    test: float | None = None
    """Fraction of all samples for testing; null: what the source recommends."""
    seed: int = 0
    """Of the splits and of the order in the shards."""
    stratify: tuple[str, ...] = ()
    """Metadata columns that, beside the class, are spread evenly over the splits."""
    label_column: str = "label"
    """Of a manifest, or the .json files in tars. Of other sources: label is their own class, anything else a column of
    their metadata, whose values become the classes."""
    max_size: int | None = None
    """Longest side in pixels; larger images are shrunk and re-encoded. null: bytes stay as they are."""
    quality: int | None = None
    """JPEG quality, 1 to 95: every image is encoded again. null: 90, and only where max_size asks for it."""
    task: Task = "multiclass"
    """What the source's labels are. Data packed for multiclass serve other tasks by `data.targets`."""
    targets: tuple[str, ...] = ()
    """With task: regression, columns of numbers."""

    def __post_init__(self) -> None:
        for key, value in (("val", self.val), ("test", self.test)):
            check(
                value is None or is_fraction(value),
                f"data.pack.{key}",
                "expected a fraction from 0 up to, not with, 1",
            )
        check((self.val or 0) + (self.test or 0) < 1, "data.pack.val", "val and test leave nothing to train on")
        check(self.max_size is None or self.max_size >= 16, "data.pack.max_size", "expected at least 16 pixels")
        regression = self.task == "regression"
        check(
            regression == bool(self.targets), "data.pack.targets", "expected columns with task: regression, only then"
        )
        check(self.quality is None or 1 <= self.quality <= 95, "data.pack.quality", "expected 1 to 95")


@dataclass(frozen=True, kw_only=True)
class ResampleConfig:
    """Which samples of the training split a member of an ensemble is trained on; `ensemble:` fills this in."""

    kind: Literal["none", "fold", "bag", "boost"] = "none"
    """none: all. fold: all but one fold. bag: a bootstrap sample. boost: all, weighted by what the members before got
    wrong."""
    number: int = 0
    """Of the fold that is left out, of the bag, or of the round, from 0."""
    count: int = 0
    """With fold: how many there are."""
    seed: int = 0
    """Of the folds and bags; the same for all members, so that folds do not overlap."""
    bootstrap: Literal["poisson", "exact"] = "poisson"
    """With bag."""
    by: Literal["loss", "sampling"] = "loss"
    """With boost."""

    def __post_init__(self) -> None:
        check(self.number >= 0, "data.resample.number", "expected 0 or more")
        fold = self.kind != "fold" or 0 <= self.number < self.count
        check(fold, "data.resample.number", f"expected less than count, which is {self.count}")
        check(self.kind != "fold" or self.count >= 2, "data.resample.count", "expected 2 or more")
        check(self.seed >= 0, "data.resample.seed", "expected 0 or more")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which images, and how they are read."""

    shards: str = ""
    """Folder that `choral pack` wrote, relative to where the command runs."""
    source: str = ""
    """What `choral run` packs into `shards` when they are missing: anything `choral pack` takes."""
    pack: PackConfig = PackConfig()
    targets: tuple[str, ...] = ()
    """Columns of the shards' metadata that are predicted, with task: regression (numbers) and multilabel (0 and 1, a
    column a label). None: what was packed for the task, with `--task`."""
    sampling: Literal["shuffled", "balanced"] = "shuffled"
    """shuffled: each sample once an epoch; balanced: each class as often, the samples of small ones more than once."""
    resample: ResampleConfig = ResampleConfig()
    train_split: str = "train"
    val_split: str = "val"
    image_size: int = 224
    """Side in pixels of the square images that the network sees."""
    resize: Literal["antialias", "fast"] = "antialias"
    """antialias: as Pillow and timm; fast: plain linear, about twice as fast, differs by some grey levels."""
    eval_crop: Literal["resized", "center"] = "center"
    """center: short side to image_size / crop_pct, then the centre; resized: the whole image, aspect ratio not kept."""
    crop_pct: float = 0.875
    lanes: int = 1
    """Streams of shards that make one global batch; must divide the micro-batch. More: fewer shards open at a time."""
    shuffle_window: int = 65536
    """Samples a lane among which the order is random."""
    workers: int = tuning(-1)
    """Decoding workers a rank; 0: in the training thread; -1: by the cores, and none beside a decoded cache."""
    worker_kind: Literal["auto", "thread", "process"] = tuning("auto")
    """auto: threads on CPU-only machines, processes where there are GPUs."""
    cache_gib: float = tuning(4.0)
    """Decode once into a memory-mapped file if it fits into this many GiB; 0: never."""
    shrink_jpegs: bool = False
    """Let the decoder shrink large JPEGs by 2, 4 or 8 before a random crop: faster, but other pixels. Not with a cache."""
    max_pixels: int = 178_956_970
    """Images with more pixels are refused before they are decoded."""
    on_bad_sample: Literal["fail", "skip"] = "fail"
    max_bad_fraction: float = 0.01
    """With on_bad_sample: skip, the share of a split that may be unreadable."""

    def __post_init__(self) -> None:
        check(16 <= self.image_size <= 4096, "data.image_size", "expected 16 to 4096 pixels")
        check(0.1 <= self.crop_pct <= 1, "data.crop_pct", "expected 0.1 to 1")
        check(self.lanes >= 1, "data.lanes", "expected at least 1")
        check(
            self.resample.kind != "boost" or self.sampling == "shuffled",
            "data.sampling",
            "balanced and boosting both say how often a sample counts: choose one",
        )
        check(
            self.lanes == 1 or self.sampling == "shuffled",
            "data.lanes",
            "balanced sampling reads everywhere: expected 1",
        )
        for name in self.targets:
            check(self.targets.count(name) == 1, "data.targets", f"'{name}' stands twice")
        check(self.shuffle_window >= 1, "data.shuffle_window", "expected at least 1")
        check(self.workers >= -1, "data.workers", "expected -1 (by itself), 0 or more")
        check(self.cache_gib >= 0, "data.cache_gib", "expected 0 or more GiB")
        both = self.shrink_jpegs and self.cache_gib > 0
        check(not both, "data.shrink_jpegs", "a decoded cache would change the samples: set data.cache_gib to 0")
        check(self.max_pixels >= 1, "data.max_pixels", "expected at least 1")
        check(0 <= self.max_bad_fraction <= 1, "data.max_bad_fraction", "expected 0 to 1")
        check(self.train_split != self.val_split, "data.val_split", "training and validation must be different splits")
