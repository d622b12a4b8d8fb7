"""The model, and which part of it is trained."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from annotated_types import Ge
from pydantic import model_validator

from choral.config.fields import Expected, Fraction, PositiveFloat, PositiveInt, check
from choral.config.section import Section

Strategy = Literal["full", "partial", "head", "gradual", "linear", "svm", "lp_ft", "auto"]


class ModelConfig(Section, frozen=True):
    """The model."""

    name: str = "resnet18"
    """A timm model: `timm.list_models()`."""
    weights: str = "auto"
    """Initial weights. auto: an installed weight package that has this model, else the hub. hub. none: random.
    package:MODULE. file:PATH: .safetensors, or .pth read with weights_only. run:FOLDER: a choral run."""
    drop_rate: Fraction = 0.0
    """Dropout before the classifier."""
    drop_path_rate: Fraction = 0.0
    """Stochastic depth, for models that have it."""
    sync_batchnorm: bool = True
    """Compute batch statistics over all ranks, so that the number of ranks does not change the model."""
    channels_last: bool = True
    """Memory format of images and weights."""

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        check(bool(self.name), "model.name", "expected a timm model name")
        kind, _, argument = self.weights.partition(":")
        check(
            self.weights in ("auto", "hub", "none") or (kind in ("package", "file", "run") and argument != ""),
            "model.weights",
            f"expected auto, hub, none, package:MODULE, file:PATH or run:FOLDER, got '{self.weights}'",
        )
        return self


class FinetuneConfig(Section, frozen=True):
    """Which part of the model is trained."""

    strategy: Strategy = "full"
    """full: everything. head: the last layer alone. partial: the head and the last stages. gradual: the head, then one
    more stage at a time. lp_ft: a linear head on frozen features first, then everything from there (Kumar et al. 2022).
    linear, svm: a linear classifier is fitted to features that are computed once, and becomes the last layer. auto: chosen
    by the number of samples and by how well frozen features separate the classes.
    Frozen layers keep their pretrained BatchNorm statistics."""
    trained_stages: Annotated[int, Ge(0), Expected("0 (the head alone) or more, or null")] | None = None
    """With partial: number of last stages to train, as timm groups the layers; null: 1; 0: the head alone. With gradual:
    number of stages trained in the end; null: all."""
    unfreeze_every_epochs: PositiveFloat = 1.0
    """With gradual: epochs until the next stage is unfrozen."""
    feature_passes: PositiveInt = 1
    """With linear, svm and lp_ft: passes over the training data; the first without augmentation, the others with it."""
    regularization: PositiveFloat | None = None
    """With linear, svm and lp_ft: weight of the head's squared norm, relative to the mean loss. null: chosen on the
    validation split, by train.best_by if that is accuracy or log_loss with classes, else by the log loss (svm: the accuracy;
    regression: the squared error). With balanced sampling or class weights, each class counts the same in that choice."""
    probe_samples: Annotated[int, Ge(100)] = 2000
    """With auto: maximum number of training samples that the choice is based on."""

    @model_validator(mode="after")
    def _check_stages(self) -> Self:
        check(
            self.strategy != "gradual" or self.trained_stages != 0,
            "finetune.trained_stages",
            "with gradual, expected at least 1, or null (all)",
        )
        return self
