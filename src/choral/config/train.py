"""The optimization of one model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from annotated_types import Gt, Le, Lt
from pydantic import Field, field_validator, model_validator

from choral.config.fields import (
    Expected,
    Fraction,
    NonBinding,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Probability,
    check,
)
from choral.config.section import Section

_LearningRate = Annotated[float, Gt(0), Lt(1e3), Expected("a learning rate above 0")]


class TrainConfig(Section, frozen=True):
    """The optimization. Batch sizes and steps are totals over all ranks."""

    epochs: PositiveFloat = 10.0
    """Passes over the training split; fractions are allowed. Ignored if `steps` is set."""
    steps: PositiveInt | None = None
    """Optimizer steps, instead of epochs."""
    batch_size: PositiveInt = 64
    """Samples in an optimizer step, over all ranks and accumulation steps."""
    accumulate_steps: PositiveInt | Literal["auto"] = 1
    """Micro-batches in an optimizer step; must divide batch_size. Batch statistics are those of a micro-batch. auto: as few
    as fit into memory, measured once before the first step and kept in batch.json of the run directory, so that the run
    continues with the same number on any machine."""
    optimizer: str = "adamw"
    """Any of timm.optim.list_optimizers()."""
    lr: _LearningRate | Literal["auto"] = 1e-3
    """Peak learning rate. auto: the result of a range test before the first step (Smith 2017); with finetune.strategy:
    gradual, the test trains what the last phase trains."""
    momentum: Fraction = 0.9
    """Momentum of SGD, or first beta of the Adam family. At 0.9, an optimizer with a different default for its first beta
    keeps it (adan: 0.98)."""
    layer_decay: Annotated[float, Gt(0), Le(1)] = 1.0
    """Factor on the learning rate from each layer to the one before it; the head has 1 (Clark et al. 2020)."""
    head_lr_scale: PositiveFloat = 1.0
    """Factor on the learning rate of the head."""
    weight_decay: NonNegativeFloat = 0.05
    """Weight decay; not applied to biases and normalization layers."""
    warmup_epochs: NonNegativeFloat = 1.0
    """Epochs of linear warm-up before the schedule."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate decreases after the warm-up."""
    cycles: PositiveInt = 1
    """How often the schedule, warm-up included, is repeated within the steps of the run (Loshchilov and Hutter 2017). With
    several cycles, the checkpoint at the end of each is kept."""
    min_lr_ratio: Probability = 0.0
    """Final learning rate of the schedule, as a fraction of lr."""
    max_grad_norm: PositiveFloat | None = 1.0
    """Gradients are clipped to this norm; null: not clipped."""
    loss: Literal["auto", "cross_entropy", "bce", "focal", "mse", "l1", "huber"] = "auto"
    """auto: cross_entropy for multiclass, bce for multilabel, mse for regression. bce with multiclass trains one-vs-rest
    (Wightman et al. 2021): the predictions are the sigmoids, divided by their sum. focal: Lin et al. 2017. Regression
    targets are standardized, so that huber's delta is one standard deviation."""
    focal_gamma: NonNegativeFloat = 2.0
    """With loss: focal, its focusing parameter."""
    label_smoothing: Fraction = 0.0
    """Fraction of the target that is spread evenly over the classes."""
    class_weights: Literal["none", "balanced"] = "none"
    """balanced: weight the loss of a sample by the inverse size of its class (multilabel: of a label's ones and zeros), with
    mean 1."""
    label_probabilities: Mapping[str, str] = Field(default_factory=dict)
    """With task: multiclass and uncertain labels: for each class, the column of the shards' metadata that holds its
    probability, such as {defective: probability}. One class may be omitted: it takes the remaining probability. Validation
    and test use the labels."""
    label_probabilities_as: Literal["targets", "weights"] = "targets"
    """targets: the loss compares predictions with the probabilities; heads that are fitted (linear, svm, the start of lp_ft)
    still use the labels. weights: the loss of a sample is weighted by the probability of its label, with mean 1."""
    ema_decay: Fraction = 0.0
    """Decay of an exponential moving average of the weights, which is validated beside them; 0: none. It rises with the
    steps: min(decay, (1 + step) / (10 + step))."""
    soup: Literal["none", "uniform", "greedy"] = "none"
    """Model soup: the mean of the weights at the ends of the last epochs, with recomputed BatchNorm statistics. uniform: all
    of them (Izmailov et al. 2018). greedy: each only if it improves validation (Wortsman et al. 2022)."""
    soup_epochs: PositiveInt = 3
    """Number of last epochs in the soup."""
    patience_epochs: NonNegativeFloat = 0.0
    """Stop after this many epochs without an improvement on validation; 0: never."""
    precision: Literal["no", "bf16", "fp16"] = "no"
    """Mixed precision of the forward pass; fp16 needs a GPU."""
    compile: bool = False
    """torch.compile: takes minutes at the start, and makes steps faster on GPUs."""
    ddp_bucket_mib: NonBinding[PositiveFloat] = 25.0
    """Size of the buckets in which ranks exchange gradients."""
    ddp_static_graph: NonBinding[bool] = False
    """Tell DDP that every step uses the same parameters. Not with accumulate_steps: PyTorch 2.14 fails with both."""
    gradient_compression: Literal["none", "bf16"] = "none"
    """Type in which ranks exchange gradients."""
    eval_every_epochs: PositiveFloat = 1.0
    """Epochs between validations, each of which may yield a new best checkpoint. The last step is always validated."""
    best_by: Literal["auto", "accuracy", "log_loss", "mean_ap", "f1", "mae", "rmse", "r2"] = "auto"
    """Validation metric that selects the best checkpoint. auto: log_loss; with regression r2, which ranks checkpoints as rmse
    does and weighs several targets equally, whatever their units."""
    save_every_steps: NonBinding[NonNegativeInt] = 0
    """Optimizer steps between checkpoints; 0: once an epoch."""
    keep_checkpoints: NonBinding[PositiveInt] = 2
    """Number of latest checkpoints to keep, in addition to the best one."""
    log_every_steps: NonBinding[PositiveInt] = 10
    """Optimizer steps between log lines."""
    timeout_s: NonBinding[PositiveFloat] = 1800.0
    """Seconds without a sign of one rank after which the others fail."""

    @field_validator("batch_size", mode="before")
    @classmethod
    def _check_batch_size(cls, value: Any) -> Any:
        check(
            value != "auto",
            "train.batch_size",
            "auto: the number of samples in an update must not depend on memory: give a number; "
            "train.accumulate_steps: auto finds how many of them fit at once",
        )
        return value

    @model_validator(mode="after")
    def _check_accumulation(self) -> Self:
        steps = self.accumulate_steps
        check(
            steps == "auto" or self.batch_size % steps == 0,
            "train.accumulate_steps",
            f"must divide train.batch_size: {self.batch_size} is not a multiple of {steps}",
        )
        check(
            not self.ddp_static_graph or steps == 1,
            "train.ddp_static_graph",
            "expected false with train.accumulate_steps above 1, or auto: DistributedDataParallel cannot do both",
        )
        return self

    @model_validator(mode="after")
    def _check_cycles(self) -> Self:
        if self.cycles == 1:
            return self
        check(self.schedule != "constant", "train.cycles", "a constant schedule has no cycles: choose cosine or linear")
        check(
            not self.patience_epochs,
            "train.patience_epochs",
            "expected 0 with several cycles: validation gets worse at the start of each",
        )
        check(
            self.soup == "none",
            "train.soup",
            "expected none with several cycles: a soup would mix weights from the middle and the end of a cycle",
        )
        return self

    @model_validator(mode="after")
    def _check_label_probabilities(self) -> Self:
        for name, column in self.label_probabilities.items():
            check(bool(column), f"train.label_probabilities.{name}", "expected the name of a column")
        return self

    @property
    def micro_batches(self) -> int:
        """Micro-batches in an optimizer step, after auto has been resolved."""
        assert self.accumulate_steps != "auto", "accumulate_steps: auto has not been resolved yet"
        return self.accumulate_steps
