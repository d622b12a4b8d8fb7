"""The optimisation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from choral.config.fields import check, is_fraction, refusing, tuning

_GLOBAL_BATCH = (
    "is how many samples an update is made of, which memory must not decide: give a number; "
    "train.accumulate_steps: auto finds how many of them fit at once"
)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The optimisation. Batch sizes and steps are those of all ranks together."""

    epochs: float = 10.0
    """Passes over the training split; fractions are allowed. Not with `steps`."""
    steps: int | None = None
    """Optimizer steps, instead of epochs."""
    batch_size: int = refusing(64, auto=_GLOBAL_BATCH)
    """Samples an optimizer step, over all ranks and accumulation steps."""
    accumulate_steps: int | Literal["auto"] = 1
    """Micro-batches a step; must divide batch_size. Batch statistics are those of a micro-batch. auto: as few as fit into
    memory, found once by trying before the first step, and kept in batch.json of the run folder: the run continues with
    them wherever it does."""
    optimizer: str = "adamw"
    """A name of timm.optim.list_optimizers()."""
    lr: float | Literal["auto"] = 1e-3
    """auto: what a range test finds, before the first step (Smith 2017); with finetune.strategy: gradual, by training
    what the last phase trains."""
    momentum: float = 0.9
    """Of sgd, and the first beta of the Adam family. At 0.9, an optimizer whose own first beta differs keeps it (adan:
    0.98)."""
    layer_decay: float = 1.0
    """Factor on the rate from each layer to the one before it, the head having 1 (Clark et al. 2020)."""
    head_lr_scale: float = 1.0
    """Factor on the rate of the head."""
    weight_decay: float = 0.05
    """Not applied to biases and norms."""
    warmup_epochs: float = 1.0
    """The rate rises linearly over these, then follows the schedule."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    cycles: int = 1
    """How often the schedule, warm-up included, is run through within the steps of the run (Loshchilov and Hutter 2017).
    With several, the checkpoint at the end of each is kept."""
    min_lr_ratio: float = 0.0
    """Where the schedule ends, as a share of lr."""
    max_grad_norm: float | None = 1.0
    loss: Literal["auto", "cross_entropy", "bce", "focal", "mse", "l1", "huber"] = "auto"
    """auto: cross_entropy for multiclass, bce for multilabel, mse for regression. bce with multiclass: one against all
    (Wightman et al. 2021); predictions are the sigmoids, divided by their sum. focal: Lin et al. 2017. Regression targets
    are standardised, so huber's corner is at one standard deviation."""
    focal_gamma: float = 2.0
    label_smoothing: float = 0.0
    class_weights: Literal["none", "balanced"] = "none"
    """balanced: a sample's loss counts inversely to the size of its class (of a label's ones and zeros), mean 1."""
    label_probabilities: Mapping[str, str] = field(default_factory=dict)
    """With task: multiclass, where labels are not certain: for each class the column of the shards' metadata that holds its
    probability, {defective: probability}. One class may be left out: it has what the others leave. Validation and test
    go by the labels."""
    label_probabilities_as: Literal["targets", "weights"] = "targets"
    """targets: the loss is that to the probabilities, of heads that are fitted (linear, svm, the start of lp_ft) still to
    the label. weights: a sample's loss counts as its label is probable, mean 1."""
    ema_decay: float = 0.0
    """Of an exponential moving average of the weights, which is validated beside them; 0: none. It begins low and rises
    with the steps made, as min(decay, (1 + step) / (10 + step))."""
    soup: Literal["none", "uniform", "greedy"] = "none"
    """The mean of the weights at the ends of the last epochs, BatchNorm statistics computed anew. uniform: of all of
    them (Izmailov et al. 2018); greedy: each only if it helps on the validation split (Wortsman et al. 2022)."""
    soup_epochs: int = 3
    """How many epochs give their weights."""
    patience_epochs: float = 0.0
    """Stop when validation has not improved for so many epochs; 0: never."""
    precision: Literal["no", "bf16", "fp16"] = "no"
    """Mixed precision of the forward pass; fp16 needs a GPU."""
    compile: bool = False
    """torch.compile: minutes at the start, faster steps on GPUs."""
    ddp_bucket_mib: float = tuning(25.0)
    """Gradients that ranks exchange at once."""
    ddp_static_graph: bool = tuning(False)
    """Tell DDP that every step uses the same parameters. Not with accumulate_steps: PyTorch 2.14 fails there."""
    gradient_compression: Literal["none", "bf16"] = "none"
    """How gradients travel between ranks."""
    eval_every_epochs: float = 1.0
    """Validation, and the chance of a new best checkpoint; also at the last step."""
    best_by: Literal["auto", "accuracy", "log_loss", "mean_ap", "f1", "mae", "rmse", "r2"] = "auto"
    """What makes a checkpoint the best one, on the validation split; auto: log_loss, for regression r2: it orders
    as rmse does, and weighs several targets alike, whatever their units."""
    save_every_steps: int = tuning(0)
    """Optimizer steps between checkpoints; 0: once an epoch."""
    keep_checkpoints: int = tuning(2)
    """Newest checkpoints kept, beside the best."""
    log_every_steps: int = tuning(10)
    timeout_s: float = tuning(1800.0)
    """Seconds after which a silent rank fails the others."""

    def __post_init__(self) -> None:
        check(self.epochs > 0, "train.epochs", "expected more than 0")
        check(self.steps is None or self.steps > 0, "train.steps", "expected more than 0")
        check(self.batch_size > 0, "train.batch_size", "expected more than 0")
        if self.accumulate_steps != "auto":
            check(self.accumulate_steps > 0, "train.accumulate_steps", "expected more than 0, or auto")
            check(
                self.batch_size % self.accumulate_steps == 0,
                "train.accumulate_steps",
                f"must divide train.batch_size: {self.batch_size} is not a multiple of {self.accumulate_steps}",
            )
        check(
            not self.ddp_static_graph or self.accumulate_steps == 1,
            "train.ddp_static_graph",
            "expected false with train.accumulate_steps above 1, or auto: DistributedDataParallel cannot do both",
        )
        if self.lr != "auto":
            legal = 0 < self.lr < 1e3 and math.isfinite(self.lr)
            check(legal, "train.lr", f"expected a learning rate above 0, got {self.lr:g}")
        check(0 < self.layer_decay <= 1, "train.layer_decay", "expected more than 0 and at most 1")
        check(self.head_lr_scale > 0, "train.head_lr_scale", "expected more than 0")
        check(self.focal_gamma >= 0, "train.focal_gamma", "expected 0 or more")
        check(is_fraction(self.ema_decay), "train.ema_decay", "expected 0 (none) up to, not with, 1")
        check(self.soup_epochs >= 1, "train.soup_epochs", "expected at least 1")
        check(self.patience_epochs >= 0, "train.patience_epochs", "expected 0 (never) or more")
        check(self.ddp_bucket_mib > 0, "train.ddp_bucket_mib", "expected more than 0")
        check(0 <= self.momentum < 1, "train.momentum", "expected 0 up to, not with, 1")
        check(self.weight_decay >= 0, "train.weight_decay", "expected 0 or more")
        check(self.warmup_epochs >= 0, "train.warmup_epochs", "expected 0 or more")
        check(self.cycles >= 1, "train.cycles", "expected at least 1")
        check(
            self.cycles == 1 or self.schedule != "constant",
            "train.cycles",
            "a constant schedule has no cycles: choose cosine or linear",
        )
        check(
            self.cycles == 1 or not self.patience_epochs,
            "train.patience_epochs",
            "expected 0 with several cycles: validation falls back at the start of each",
        )
        check(
            self.cycles == 1 or self.soup == "none",
            "train.soup",
            "expected none with several cycles: a soup of epochs' ends would mix the middle of a cycle with its end",
        )
        check(0 <= self.min_lr_ratio <= 1, "train.min_lr_ratio", "expected 0 to 1")
        check(
            self.max_grad_norm is None or self.max_grad_norm > 0, "train.max_grad_norm", "expected more than 0, or null"
        )
        check(is_fraction(self.label_smoothing), "train.label_smoothing", "expected 0 up to, not with, 1")
        for name, column in self.label_probabilities.items():
            key = f"train.label_probabilities.{name}"
            check(bool(column), key, "expected the name of a column")
        check(self.eval_every_epochs > 0, "train.eval_every_epochs", "expected more than 0")
        check(self.save_every_steps >= 0, "train.save_every_steps", "expected 0 or more")
        check(self.keep_checkpoints >= 1, "train.keep_checkpoints", "expected at least 1")
        check(self.log_every_steps >= 1, "train.log_every_steps", "expected at least 1")
        check(self.timeout_s > 0, "train.timeout_s", "expected more than 0 seconds")

    @property
    def micro_batches(self) -> int:
        """How many micro-batches a step has, once `train.micro_batch` has resolved auto."""
        assert self.accumulate_steps != "auto", "how many micro-batches fit has not been found yet"
        return self.accumulate_steps
