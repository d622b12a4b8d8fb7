"""Fine-tuning strategies: which parameters are trained, and from which step.

A strategy is a sequence of phases; each phase lists the parameters that it trains. Stages are timm's coarse groups of
layers, first to last. The last stage is the classifier alone: other layers that timm groups with it (a final norm, a
layer before the logits) belong to the stage before. Frozen parameters have no gradient, are in no optimizer, and their
BatchNorm layers keep the pretrained statistics.

To add a strategy:
  1. add its name to `Strategy` in `choral/config/model.py`, and its checks to `FinetuneConfig` there;
  2. return its phases from `build_phases` below: for each start step, the names of the trained parameters.
A strategy that fits the head to frozen features instead of making optimizer steps also goes into
`choral/training/feature_heads.py`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from timm.models._manipulate import group_with_matcher  # the public functions take parameters only
from torch import nn

from choral.config import FinetuneConfig
from choral.core.errors import ConfigError

_FROZEN_NORMS = "frozen_norms"  # attribute of the network: names of the BatchNorm layers that stay in eval mode


@dataclass(frozen=True)
class Phase:
    """A part of a run during which the same parameters are trained."""

    start_step: int
    """Optimizer steps before this phase."""
    trained: frozenset[str]
    """Names of the trained parameters, as in `network.named_parameters()`."""
    freeze_statistics: bool = False
    """Whether all BatchNorm layers keep their pretrained statistics, including those with trained weights."""


def list_stages(model: nn.Module) -> list[list[str]]:
    """Return the names of the parameters of each stage, first to last; the last stage is the classifier.

    Args:
        model: a timm network, not wrapped.

    Raises:
        ConfigError: it has no classifier to fine-tune.
    """
    return _group_by_stage(model, [name for name, _ in model.named_parameters()])


def build_phases(model: nn.Module, config: FinetuneConfig, steps_per_epoch: int, total_steps: int) -> tuple[Phase, ...]:
    """Return the phases of a strategy: one, or with `gradual` one for each stage that is unfrozen before the end.

    Args:
        model: a timm network, not wrapped.
        config: with a strategy other than `auto`.
        steps_per_epoch, total_steps: optimizer steps.

    Raises:
        ConfigError: the network has fewer stages than `trained_stages`.
    """
    assert config.strategy != "auto", "resolve the strategy auto first"
    *backbone, head = list_stages(model)
    if config.strategy in ("full", "lp_ft"):
        # lp_ft: the head was fitted to features computed with the pretrained statistics. With batch statistics the
        # backbone would compute other features, to which the head does not fit.
        trained = frozenset(_flatten([*backbone, head]))
        return (Phase(0, trained, freeze_statistics=config.strategy == "lp_ft"),)
    if config.strategy in ("head", "linear", "svm"):
        return (Phase(0, frozenset(head)),)
    if config.trained_stages is not None and config.trained_stages > len(backbone):
        raise ConfigError(
            f"finetune.trained_stages: the network has {len(backbone)} stages before its head, got "
            f"{config.trained_stages}"
        )
    if config.strategy == "partial":
        count = 1 if config.trained_stages is None else config.trained_stages
        return (Phase(0, frozenset(_flatten([*_last(backbone, count), head]))),)
    starts: dict[int, int] = {}  # start step -> number of trained stages; if several start at one step, the largest
    for count in range((config.trained_stages or len(backbone)) + 1):
        start = round(count * config.unfreeze_every_epochs * steps_per_epoch)
        if start < total_steps:
            starts[start] = count
    return tuple(Phase(start, frozenset(_flatten([*_last(backbone, count), head]))) for start, count in starts.items())


def apply_phase(model: nn.Module, phase: Phase) -> None:
    """Set `requires_grad` for the parameters of a phase, and record which BatchNorm layers `train_mode` keeps in eval mode.

    A BatchNorm without parameters (affine=False) is frozen if no parameter of its stage is trained.

    Args:
        model: the network, not wrapped; apply the phase before building the optimizer and DistributedDataParallel.
        phase: of the same network.
    """
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in phase.trained)
    parameters = [name for name, _ in model.named_parameters()]
    norms = {
        name: [f"{name}.{parameter}" for parameter, _ in module.named_parameters(recurse=False)]
        for name, module in model.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
    }
    # Norms without parameters get the name of a made-up weight, by which timm assigns them to a stage.
    bare = {f"{name}.weight": name for name, names in norms.items() if not names}
    stage_of = {name: stage for stage in _group_by_stage(model, [*parameters, *bare]) for name in stage if name in bare}
    frozen = {name for name, names in norms.items() if names and phase.trained.isdisjoint(names)}
    if phase.freeze_statistics:
        frozen = set(norms)
    frozen |= {bare[name] for name, stage in stage_of.items() if phase.trained.isdisjoint(stage)}
    setattr(model, _FROZEN_NORMS, tuple(sorted(frozen)))


def train_mode(model: nn.Module) -> None:
    """Put a network, wrapped or not, into training mode, except for its frozen BatchNorm layers."""
    model.train()
    for module in list(model.modules()):
        for name in vars(module).get(_FROZEN_NORMS, ()):
            module.get_submodule(name).eval()


def classifier_parameter_names(model: nn.Module) -> list[str]:
    """Return the names of the parameters of the classifier, or of all classifiers if the network has several.

    Raises:
        ConfigError: it has none.
    """
    classifier = model.get_classifier()  # type: ignore[operator]
    layers = classifier if isinstance(classifier, tuple | list) else [classifier]
    ids = {id(parameter) for layer in layers for parameter in layer.parameters()}
    names = [name for name, parameter in model.named_parameters() if id(parameter) in ids]
    if not names:
        raise ConfigError(f"model.name: {type(model).__name__} has no classifier to train; choose another model")
    return names


def _group_by_stage(model: nn.Module, names: list[str]) -> list[list[str]]:
    """Return `names`, which are parameter names or look like them, by stage; the classifier is the last stage."""
    matcher = model.group_matcher(coarse=True)  # type: ignore[operator]
    groups = group_with_matcher(((name, name) for name in names), matcher)
    head = set(classifier_parameter_names(model))
    backbone = [[name for name in groups[number] if name not in head] for number in sorted(groups)]
    if len(backbone) > 1:
        grouped_with_head = backbone.pop()
        backbone[-1] += grouped_with_head
    return [*(stage for stage in backbone if stage), [name for name in names if name in head]]


def _last(stages: list[list[str]], count: int) -> list[list[str]]:
    return stages[len(stages) - count :]


def _flatten(stages: Iterable[list[str]]) -> list[str]:
    return [name for stage in stages for name in stage]
