"""The images: where they are, how they are split, and how they are read."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from annotated_types import Ge, Le
from pydantic import Field, model_validator

from choral.config.fields import (
    Expected,
    Fraction,
    NonBinding,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    Probability,
    check,
)
from choral.config.section import Section

Task = Literal["multiclass", "multilabel", "regression"]


class PackConfig(Section, frozen=True):
    """How `choral run` packs `data.source`; see `choral pack --help`."""

    val: Fraction | None = None
    """Fraction of all samples for validation; null: the source's default."""
    test: Fraction | None = None
    """Fraction of all samples for testing; null: the source's default."""
    seed: int = 0
    """Seed of the splits and of the sample order in the shards."""
    stratify: tuple[str, ...] = ()
    """Metadata columns to stratify the splits by, in addition to the class."""
    label_column: str = "label"
    """Label column of a manifest, or of the .json files in tars. With other sources, label is the source's own class, and
    any other name is a column of its metadata whose values become the classes."""
    max_size: Annotated[int, Ge(16)] | None = None
    """Longest side in pixels: larger images are shrunk and re-encoded. null: images are stored unchanged."""
    quality: Annotated[int, Ge(1), Le(95)] | None = None
    """JPEG quality with which every image is re-encoded. null: only images that max_size shrinks are re-encoded, at 90."""
    task: Task = "multiclass"
    """Kind of the source's labels. Data packed for multiclass serve other tasks through `data.targets`."""
    targets: tuple[str, ...] = ()
    """With task: regression, the numeric target columns."""

    @model_validator(mode="after")
    def _check_splits_and_targets(self) -> Self:
        check((self.val or 0) + (self.test or 0) < 1, "data.pack.val", "val and test leave nothing to train on")
        regression = self.task == "regression"
        check(
            regression == bool(self.targets),
            "data.pack.targets",
            "expected columns with task: regression, and none otherwise",
        )
        return self


class ResampleConfig(Section, frozen=True):
    """The part of the training split that a member of an ensemble is trained on. `ensemble:` sets it."""

    kind: Literal["none", "fold", "bag", "boost"] = "none"
    """none: all samples. fold: all but one fold. bag: a bootstrap sample. boost: all samples, weighted by the errors of the
    previous members."""
    number: NonNegativeInt = 0
    """Index of the left-out fold, of the bag, or of the boosting round, from 0."""
    count: int = 0
    """With fold: number of folds."""
    seed: NonNegativeInt = 0
    """Seed of the folds or bags; the same for all members, so that folds do not overlap."""
    bootstrap: Literal["poisson", "exact"] = "poisson"
    """With bag: see `ensemble.bootstrap`."""
    by: Literal["loss", "sampling"] = "loss"
    """With boost: see `ensemble.boosting_by`."""

    @model_validator(mode="after")
    def _check_fold(self) -> Self:
        fold = self.kind != "fold" or self.number < self.count
        check(fold, "data.resample.number", f"expected less than count, which is {self.count}")
        check(self.kind != "fold" or self.count >= 2, "data.resample.count", "expected 2 or more")
        return self


class DataConfig(Section, frozen=True):
    """The images, and how they are read."""

    shards: str = ""
    """Directory that `choral pack` wrote, relative to the working directory of the command."""
    source: str = ""
    """What `choral run` packs into `shards` if they are missing: any SOURCE of `choral pack`."""
    pack: PackConfig = Field(default_factory=PackConfig)
    """How `source` is packed."""
    targets: tuple[str, ...] = ()
    """Metadata columns to predict, with task: regression (numbers) or multilabel (0 and 1, one column a label). Empty: the
    labels that were packed for the task with `--task`."""
    sampling: Literal["shuffled", "balanced"] = "shuffled"
    """shuffled: each sample once an epoch. balanced: each class equally often, with samples of small classes repeated."""
    resample: ResampleConfig = Field(default_factory=ResampleConfig)
    """The part of the training split that a member is trained on."""
    train_split: str = "train"
    """Name of the training split."""
    val_split: str = "val"
    """Name of the validation split."""
    image_size: Annotated[int, Ge(16), Le(4096)] = 224
    """Side, in pixels, of the square images that the model takes."""
    resize: Literal["antialias", "fast"] = "antialias"
    """antialias: like Pillow and timm. fast: plain bilinear, about twice as fast; pixels differ by a few grey levels."""
    eval_crop: Literal["resized", "center"] = "center"
    """center: resize the short side to image_size / crop_pct, then crop the centre. resized: resize the whole image, without
    keeping its aspect ratio."""
    crop_pct: Annotated[float, Ge(0.1), Le(1)] = 0.875
    """With eval_crop: center, the fraction of the short side that the crop keeps."""
    lanes: PositiveInt = 1
    """Streams of shards that make up a global batch; must divide the micro-batch. With more lanes, each rank reads fewer
    shards at a time."""
    shuffle_window: PositiveInt = 65536
    """Samples within which each lane is shuffled."""
    workers: NonBinding[Annotated[int, Ge(-1), Expected("-1 (automatic), 0 or more")]] = -1
    """Decoding workers of a rank. 0: decode in the training thread. -1: by the number of cores, and 0 with a decoded
    cache."""
    worker_kind: NonBinding[Literal["auto", "thread", "process"]] = "auto"
    """auto: threads on machines without a GPU, processes otherwise."""
    cache_gib: NonBinding[NonNegativeFloat] = 4.0
    """Decode the images once into a memory-mapped file if they fit into this many GiB; 0: never."""
    shrink_jpegs: bool = False
    """Let the decoder shrink large JPEGs by 2, 4 or 8 before a random crop: faster, but pixels differ. Cannot be combined
    with a decoded cache."""
    max_pixels: PositiveInt = 178_956_970
    """Images with more pixels are rejected before they are decoded."""
    on_bad_sample: Literal["fail", "skip"] = "fail"
    """What to do about a sample that cannot be read."""
    max_bad_fraction: Probability = 0.01
    """With on_bad_sample: skip, the maximum fraction of a split that may be unreadable."""

    @model_validator(mode="after")
    def _check_combinations(self) -> Self:
        check(
            self.resample.kind != "boost" or self.sampling == "shuffled",
            "data.sampling",
            "balanced and boosting both say how often a sample counts: choose one",
        )
        check(
            self.lanes == 1 or self.sampling == "shuffled",
            "data.lanes",
            "expected 1 with balanced sampling, which reads from all shards",
        )
        for name in self.targets:
            check(self.targets.count(name) == 1, "data.targets", f"'{name}' is listed twice")
        both = self.shrink_jpegs and self.cache_gib > 0
        check(not both, "data.shrink_jpegs", "a decoded cache would change the samples: set data.cache_gib to 0")
        check(self.train_split != self.val_split, "data.val_split", "training and validation must be different splits")
        return self
