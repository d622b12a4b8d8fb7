"""The network, and which part of it is trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from choral.config.fields import check, is_fraction

Strategy = Literal["full", "partial", "head", "gradual", "linear", "svm", "lp_ft", "auto"]


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
        check(bool(self.name), "model.name", "expected a timm model name")
        kinds = ("auto", "hub", "none", "package:", "file:", "run:")
        known = self.weights in kinds[:3] or (
            self.weights.startswith(kinds[3:]) and self.weights.partition(":")[2] != ""
        )
        check(
            known,
            "model.weights",
            f"expected auto, hub, none, package:MODULE, file:PATH or run:FOLDER, got '{self.weights}'",
        )
        check(is_fraction(self.drop_rate), "model.drop_rate", "expected 0 up to, not with, 1")
        check(is_fraction(self.drop_path_rate), "model.drop_path_rate", "expected 0 up to, not with, 1")


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """Which part of the network is trained."""

    strategy: Strategy = "full"
    """full: everything. head: the last layer alone. partial: the head and the last stages. gradual: the head, then one
    stage more at a time. lp_ft: a linear head on frozen features first, then everything from there (Kumar et al. 2022).
    linear, svm: features are computed once, a linear classifier is fitted to them and becomes the last layer. auto:
    chosen by the number of samples and by how well frozen features already separate the classes.
    What is frozen keeps its pretrained BatchNorm statistics."""
    trained_stages: int | None = None
    """With partial: how many of the last stages, as timm groups the network's layers; null: 1; 0: the head alone. With
    gradual: how many in the end; null: all."""
    unfreeze_every_epochs: float = 1.0
    """With gradual: until the next stage joins."""
    feature_passes: int = 1
    """With linear, svm and lp_ft: passes over the training data; the first shows the images as they are, the others
    augmented."""
    regularization: float | None = None
    """With linear, svm and lp_ft: weight of the squared norm of the head, relative to the mean loss; null: chosen on
    the validation split, by train.best_by if that is accuracy or log_loss of classes, else by the log loss (svm: the
    accuracy; regression: the squared error). With balanced sampling or class weights, classes count alike in that."""
    probe_samples: int = 2000
    """With auto: training samples, at most, that the choice is based on."""

    def __post_init__(self) -> None:
        least = 1 if self.strategy == "gradual" else 0
        check(
            self.trained_stages is None or self.trained_stages >= least,
            "finetune.trained_stages",
            "with gradual, expected at least 1, or null (all)" if least else "expected 0 (the head alone) or more",
        )
        check(self.unfreeze_every_epochs > 0, "finetune.unfreeze_every_epochs", "expected more than 0")
        check(self.feature_passes >= 1, "finetune.feature_passes", "expected at least 1")
        check(
            self.regularization is None or self.regularization > 0,
            "finetune.regularization",
            "expected more than 0, or null",
        )
        check(self.probe_samples >= 100, "finetune.probe_samples", "expected at least 100")
