"""The experiment: every choice of a run, typed, validated and frozen. Imports no torch, so that a login node can read it.

Values come from the defaults below, then the files named by `base:`, then the file, then `key=value` overrides; the last
one wins. `choral.configfile` reads them; the checks that need more than one field stand in `__post_init__`.

A field declared with `tuning()` decides how fast or how visibly a run goes, not what it computes: it may differ when a
run is continued. All others may not.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from choral.errors import ConfigError, did_you_mean


def tuning(default: Any) -> Any:
    """Declare a field that may change between two starts of the same run."""
    return field(default=default, metadata={"tuning": True})


def _check(condition: bool, key: str, expected: str) -> None:
    if not condition:
        raise ConfigError(f"{key}: {expected}")


def _is_fraction(value: float) -> bool:
    return 0.0 <= value < 1.0


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
    max_size: int | None = None
    """Longest side in pixels; larger images are shrunk and re-encoded. null: bytes stay as they are."""
    quality: int | None = None
    """JPEG quality, 1 to 95: every image is encoded again. null: 90, and only where max_size asks for it."""

    def __post_init__(self) -> None:
        for key, value in (("val", self.val), ("test", self.test)):
            _check(
                value is None or _is_fraction(value),
                f"data.pack.{key}",
                "expected a fraction from 0 up to, not with, 1",
            )
        _check((self.val or 0) + (self.test or 0) < 1, "data.pack.val", "val and test leave nothing to train on")
        _check(self.max_size is None or self.max_size >= 16, "data.pack.max_size", "expected at least 16 pixels")
        _check(self.quality is None or 1 <= self.quality <= 95, "data.pack.quality", "expected 1 to 95")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which images, and how they are read."""

    shards: str = ""
    """Folder that `choral pack` wrote, relative to where the command runs."""
    source: str = ""
    """What `choral run` packs into `shards` when they are missing: anything `choral pack` takes."""
    pack: PackConfig = PackConfig()
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
        _check(16 <= self.image_size <= 4096, "data.image_size", "expected 16 to 4096 pixels")
        _check(0.1 <= self.crop_pct <= 1, "data.crop_pct", "expected 0.1 to 1")
        _check(self.lanes >= 1, "data.lanes", "expected at least 1")
        _check(self.shuffle_window >= 1, "data.shuffle_window", "expected at least 1")
        _check(self.workers >= -1, "data.workers", "expected -1 (by itself), 0 or more")
        _check(self.cache_gib >= 0, "data.cache_gib", "expected 0 or more GiB")
        both = self.shrink_jpegs and self.cache_gib > 0
        _check(not both, "data.shrink_jpegs", "a decoded cache would change the samples: set data.cache_gib to 0")
        _check(self.max_pixels >= 1, "data.max_pixels", "expected at least 1")
        _check(0 <= self.max_bad_fraction <= 1, "data.max_bad_fraction", "expected 0 to 1")
        _check(self.train_split != self.val_split, "data.val_split", "training and validation must be different splits")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network."""

    name: str = "resnet18"
    """A timm model: `timm.list_models()`."""
    weights: str = "auto"
    """Where it starts: auto (an installed weight package that has this model, else the hub), hub, none (random),
    package:MODULE, file:PATH (.safetensors, or .pth read with weights_only), run:FOLDER (a run of choral)."""
    drop_rate: float = 0.0
    drop_path_rate: float = 0.0
    sync_batchnorm: bool = True
    """Batch statistics over all ranks, so that the number of ranks does not change the model."""
    channels_last: bool = True

    def __post_init__(self) -> None:
        _check(bool(self.name), "model.name", "expected a timm model name")
        kinds = ("auto", "hub", "none", "package:", "file:", "run:")
        known = self.weights in kinds[:3] or (
            self.weights.startswith(kinds[3:]) and self.weights.partition(":")[2] != ""
        )
        _check(
            known,
            "model.weights",
            f"expected auto, hub, none, package:MODULE, file:PATH or run:FOLDER, got '{self.weights}'",
        )
        _check(_is_fraction(self.drop_rate), "model.drop_rate", "expected 0 up to, not with, 1")
        _check(_is_fraction(self.drop_path_rate), "model.drop_path_rate", "expected 0 up to, not with, 1")


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """Which part of the network is trained."""

    strategy: Literal["full", "partial"] = "full"
    """full: everything; partial: the head and the last stages. What is frozen keeps its pretrained BatchNorm statistics."""
    trained_stages: int = 1
    """With partial: how many of the last stages, as timm groups the network's layers."""

    def __post_init__(self) -> None:
        _check(self.trained_stages >= 0, "finetune.trained_stages", "expected 0 (the head alone) or more")


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Random changes to training images, and to nothing else."""

    crop_scale: tuple[float, float] = (0.35, 1.0)
    """Share of the area that a random crop keeps; [1, 1]: the whole image, cropped as in evaluation."""
    crop_ratio: tuple[float, float] = (0.75, 4 / 3)
    """Aspect ratios (width / height) of a random crop."""
    hflip: float = 0.5
    """Probability."""
    vflip: float = 0.0
    """Probability."""
    rot90: bool = False
    """Turn by 0, 90, 180 or 270 degrees, each as likely."""
    brightness: float = 0.0
    """Factor drawn from [1 - x, 1 + x]."""
    contrast: float = 0.0
    """Factor drawn from [1 - x, 1 + x], about the image's mean."""

    def __post_init__(self) -> None:
        low, high = self.crop_scale
        _check(0 < low <= high <= 1, "augment.crop_scale", "expected [low, high] with 0 < low <= high <= 1")
        low, high = self.crop_ratio
        _check(0 < low <= high, "augment.crop_ratio", "expected [low, high] with 0 < low <= high")
        for key in ("hflip", "vflip", "brightness", "contrast"):
            _check(0 <= getattr(self, key) <= 1, f"augment.{key}", "expected 0 to 1")

    @property
    def crops(self) -> bool:
        """Whether training images are cropped at random."""
        return self.crop_scale != (1.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The optimisation. Batch sizes and steps are those of all ranks together."""

    epochs: float = 10.0
    """Passes over the training split; fractions are allowed. Not with `steps`."""
    steps: int | None = None
    """Optimizer steps, instead of epochs."""
    batch_size: int = 64
    """Samples an optimizer step, over all ranks and accumulation steps."""
    accumulate_steps: int = 1
    """Micro-batches a step; must divide batch_size. Batch statistics are those of a micro-batch."""
    optimizer: str = "adamw"
    """A name of timm.optim.list_optimizers()."""
    lr: float = 1e-3
    momentum: float = 0.9
    """Of sgd, and the first beta of the Adam family."""
    weight_decay: float = 0.05
    """Not applied to biases and norms."""
    warmup_epochs: float = 1.0
    """The rate rises linearly over these, then falls along a cosine."""
    min_lr_ratio: float = 0.0
    """Where the cosine ends, as a share of lr."""
    max_grad_norm: float | None = 1.0
    label_smoothing: float = 0.0
    precision: Literal["no", "bf16", "fp16"] = "no"
    """Mixed precision of the forward pass; fp16 needs a GPU."""
    eval_every_epochs: float = 1.0
    """Validation, and the chance of a new best checkpoint; also at the last step."""
    best_by: Literal["accuracy", "log_loss"] = "log_loss"
    """What makes a checkpoint the best one, on the validation split."""
    save_every_steps: int = tuning(0)
    """Optimizer steps between checkpoints; 0: once an epoch."""
    keep_checkpoints: int = tuning(2)
    """Newest checkpoints kept, beside the best."""
    log_every_steps: int = tuning(10)
    timeout_s: float = tuning(1800.0)
    """Seconds after which a silent rank fails the others."""

    def __post_init__(self) -> None:
        _check(self.epochs > 0, "train.epochs", "expected more than 0")
        _check(self.steps is None or self.steps > 0, "train.steps", "expected more than 0")
        _check(self.batch_size > 0, "train.batch_size", "expected more than 0")
        _check(self.accumulate_steps > 0, "train.accumulate_steps", "expected more than 0")
        _check(
            self.batch_size % self.accumulate_steps == 0,
            "train.accumulate_steps",
            f"must divide train.batch_size: {self.batch_size} is not a multiple of {self.accumulate_steps}",
        )
        _check(
            0 < self.lr < 1e3 and math.isfinite(self.lr),
            "train.lr",
            f"expected a learning rate above 0, got {self.lr:g}",
        )
        _check(0 <= self.momentum < 1, "train.momentum", "expected 0 up to, not with, 1")
        _check(self.weight_decay >= 0, "train.weight_decay", "expected 0 or more")
        _check(self.warmup_epochs >= 0, "train.warmup_epochs", "expected 0 or more")
        _check(0 <= self.min_lr_ratio <= 1, "train.min_lr_ratio", "expected 0 to 1")
        _check(
            self.max_grad_norm is None or self.max_grad_norm > 0, "train.max_grad_norm", "expected more than 0, or null"
        )
        _check(_is_fraction(self.label_smoothing), "train.label_smoothing", "expected 0 up to, not with, 1")
        _check(self.eval_every_epochs > 0, "train.eval_every_epochs", "expected more than 0")
        _check(self.save_every_steps >= 0, "train.save_every_steps", "expected 0 or more")
        _check(self.keep_checkpoints >= 1, "train.keep_checkpoints", "expected at least 1")
        _check(self.log_every_steps >= 1, "train.log_every_steps", "expected at least 1")
        _check(self.timeout_s > 0, "train.timeout_s", "expected more than 0 seconds")


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """How trained members are asked."""

    splits: tuple[str, ...] = ("test",)
    views: tuple[str, ...] = ("identity", "hflip")
    """Test-time views whose probabilities are averaged; d4 stands for the eight flips and rotations."""
    batch_size: int = tuning(64)
    """Images a forward pass and rank; views are passed one after the other."""
    checkpoint: Literal["best", "last"] = "best"
    keep_views: bool = False
    """Keep each view's probabilities in the ledger, not only the identity and the mean."""

    def __post_init__(self) -> None:
        _check(len(self.splits) > 0, "evaluate.splits", "expected at least one split")
        _check(len(self.views) > 0, "evaluate.views", "expected at least one view, such as identity")
        _check(self.batch_size > 0, "evaluate.batch_size", "expected more than 0")


_MEMBER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, kw_only=True)
class MemberConfig:
    """One voice of the ensemble."""

    name: str
    """Names its folder and its row in tables: letters, digits, dot, dash, underscore."""
    set: Mapping[str, Any] = field(default_factory=dict)
    """What differs from the run's config, as dotted keys: {model.name: ..., seed: 1}."""

    def __post_init__(self) -> None:
        legal = _MEMBER_NAME.fullmatch(self.name) is not None
        _check(legal, "ensemble.members", f"'{self.name}' is no member name: use letters, digits, '.', '_' and '-'")


@dataclass(frozen=True, kw_only=True)
class EnsembleConfig:
    """The members, trained as parallel jobs on this machine."""

    members: tuple[MemberConfig, ...] = ()
    """None: the run is one network, called `model`."""
    max_parallel: int = tuning(0)
    """Members trained at once; 0: as many as the devices (on a CPU: the cores) hold."""
    processes_per_member: int = tuning(1)
    """Ranks, and on a GPU machine devices, of each member."""
    retries: int = tuning(1)
    """Further attempts of a member that fails."""

    def __post_init__(self) -> None:
        names = [member.name for member in self.members]
        for name in names:
            _check(names.count(name) == 1, "ensemble.members", f"two members are called '{name}': names must differ")
        _check(self.max_parallel >= 0, "ensemble.max_parallel", "expected 0 or more")
        _check(self.processes_per_member >= 1, "ensemble.processes_per_member", "expected at least 1")
        _check(self.retries >= 0, "ensemble.retries", "expected 0 or more")


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """Where curves go beside `metrics.jsonl` in the run folder."""

    wandb: Literal["auto", "online", "offline", "off"] = tuning("auto")
    """auto: online where somebody is logged in, offline elsewhere."""
    project: str = tuning("choral")
    entity: str | None = tuning(None)


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A published figure, shown beside the run's own."""

    name: str
    metric: Literal["accuracy"] = "accuracy"
    value: float
    """In the unit of the metric: 0.8842, not 88.42."""
    source: str
    split: str = "test"
    """Whose table it stands in."""

    def __post_init__(self) -> None:
        _check(0 <= self.value <= 1, "references", f"'{self.name}': expected a value from 0 to 1, such as 0.8842")


@dataclass(frozen=True, kw_only=True)
class Config:
    """One run: what `choral train`, `ensemble`, `evaluate`, `score` and `run` work on."""

    run: str = ""
    """Names the folder runs/NAME; by default the name of the config file."""
    seed: int = 0
    """Of everything random in training."""
    task: Literal["multiclass"] = "multiclass"
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    finetune: FinetuneConfig = FinetuneConfig()
    augment: AugmentConfig = AugmentConfig()
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    ensemble: EnsembleConfig = EnsembleConfig()
    tracking: TrackingConfig = TrackingConfig()
    references: tuple[Reference, ...] = field(default=(), metadata={"tuning": True})

    def __post_init__(self) -> None:
        _check(
            not self.run or _MEMBER_NAME.fullmatch(self.run) is not None,
            "run",
            f"'{self.run}' is no run name: use letters, digits, '.', '_' and '-'",
        )
        _check(0 <= self.seed < 2**31, "seed", "expected 0 to 2147483647")
        _check(bool(self.data.shards), "data.shards", "expected the folder that `choral pack SOURCE OUT` wrote")
        micro_batch = self.train.batch_size // self.train.accumulate_steps
        _check(
            micro_batch % self.data.lanes == 0,
            "data.lanes",
            f"must divide the micro-batch: {micro_batch} samples cannot be shared by {self.data.lanes} lanes",
        )
        for member in self.ensemble.members:
            for key in member.set:
                allowed = key.split(".")[0] in ("seed", "data", "model", "finetune", "augment", "train")
                _check(
                    allowed,
                    f"ensemble.members.{member.name}.set.{key}",
                    "a member may set seed, data.*, model.*, finetune.*, augment.* or train.*",
                )


def binding_difference(old: Config, new: Config) -> list[str]:
    """Return a line "key: old -> new" for each field that makes the two different experiments; the run's name is none."""
    lines: list[str] = []

    def walk(before: Any, after: Any, prefix: str) -> None:
        for item in dataclasses.fields(before):
            a, b = getattr(before, item.name), getattr(after, item.name)
            if item.metadata.get("tuning") or prefix + item.name == "run":
                continue
            if dataclasses.is_dataclass(a):
                walk(a, b, f"{prefix}{item.name}.")
            elif a != b:
                lines.append(f"{prefix}{item.name}: {a} -> {b}")

    walk(old, new, "")
    return lines


def field_names(config_type: type) -> list[str]:
    """Return the names of a config dataclass's fields in the order of their declaration."""
    return [item.name for item in dataclasses.fields(config_type)]


def unknown_key(key: str, prefix: str, config_type: type) -> ConfigError:
    """Return the error for a key that `config_type` does not have, with the nearest one that it has."""
    names = field_names(config_type)
    hint = did_you_mean(key, names)
    hint = hint.replace("Did you mean ", f"Did you mean {prefix}") if hint else f" Known keys: {', '.join(names)}."
    return ConfigError(f"{prefix}{key}: unknown key.{hint}")
