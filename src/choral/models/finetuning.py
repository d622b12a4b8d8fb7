"""Which part of a network is trained, and from when on.

Stages are timm's own coarse grouping of a network's layers, first to last; the last one is the head, which is the
classifier alone: what timm groups with it (a last norm, a layer before the logits) belongs to the stage before. What is
frozen takes no gradient, stands in no optimizer, and keeps its pretrained BatchNorm statistics.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from timm.models._manipulate import group_with_matcher  # the public functions take parameters only
from torch import nn

from choral.config import FinetuneConfig
from choral.core.errors import ConfigError

_FROZEN_NORMS = "frozen_norms"  # attribute of the network: names of its BatchNorm layers that stay in evaluation mode


@dataclass(frozen=True)
class Phase:
    """A part of a run in which the same parameters are trained."""

    start_step: int
    """Optimizer steps made before it."""
    trained: frozenset[str]
    """Names of the parameters that are trained, as in `network.named_parameters()`."""
    keeps_statistics: bool = False
    """Whether every BatchNorm keeps its pretrained statistics, those with trained weights too."""


def stages_of(model: nn.Module) -> list[list[str]]:
    """Return the parameters' names of each stage, first to last; the last stage is the classifier.

    Args:
        model: a timm network, not wrapped.

    Raises:
        ConfigError: it has no classifier, so there is nothing to fine-tune.
    """
    return _grouped(model, [name for name, _ in model.named_parameters()])


def phases_of(model: nn.Module, config: FinetuneConfig, steps_per_epoch: int, total_steps: int) -> tuple[Phase, ...]:
    """Return what is trained when: one phase, or with `gradual` one for each stage that joins before the end.

    Args:
        model: a timm network, not wrapped.
        config: its strategy is not `auto`, which has been resolved.
        steps_per_epoch, total_steps: optimizer steps.

    Raises:
        ConfigError: the network has fewer stages than are to be trained.
    """
    assert config.strategy != "auto", "what auto stands for is chosen before the network is trained"
    *body, head = stages_of(model)
    if config.strategy in ("full", "lp_ft"):
        # A linear head was fitted to features made with the pretrained statistics. With those of its own batches the
        # network would begin as another one, which that head knows nothing of.
        return (Phase(0, frozenset(_flat([*body, head])), keeps_statistics=config.strategy == "lp_ft"),)
    if config.strategy in ("head", "linear", "svm"):
        return (Phase(0, frozenset(head)),)
    if config.trained_stages is not None and config.trained_stages > len(body):
        raise ConfigError(
            f"finetune.trained_stages: the network has {len(body)} stages before its head, got {config.trained_stages}"
        )
    if config.strategy == "partial":
        count = 1 if config.trained_stages is None else config.trained_stages
        return (Phase(0, frozenset(_flat([*_last(body, count), head]))),)
    starts: dict[int, int] = {}  # step to stages trained; of several that join at one step, the last counts
    for count in range((config.trained_stages or len(body)) + 1):
        start = round(count * config.unfreeze_every_epochs * steps_per_epoch)
        if start < total_steps:
            starts[start] = count
    return tuple(Phase(start, frozenset(_flat([*_last(body, count), head]))) for start, count in starts.items())


def apply_phase(model: nn.Module, phase: Phase) -> None:
    """Let exactly the phase's parameters take gradients, and note which BatchNorm layers `train_mode` leaves alone.

    A BatchNorm without parameters of its own (affine=False) is frozen if no parameter of its stage is trained.

    Args:
        model: the network, not wrapped; call it before the optimizer is built and DistributedDataParallel wraps it.
        phase: of the same network.
    """
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in phase.trained)
    parameters = [name for name, _ in model.named_parameters()]
    norms = {
        name: [f"{name}.{own}" for own, _ in module.named_parameters(recurse=False)]
        for name, module in model.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
    }
    bare = {f"{name}.weight": name for name, own in norms.items() if not own}
    own_stage = {name: stage for stage in _grouped(model, [*parameters, *bare]) for name in stage if name in bare}
    frozen = {name for name, own in norms.items() if own and phase.trained.isdisjoint(own)}
    if phase.keeps_statistics:
        frozen = set(norms)
    frozen |= {bare[name] for name, stage in own_stage.items() if phase.trained.isdisjoint(stage)}
    setattr(model, _FROZEN_NORMS, tuple(sorted(frozen)))


def train_mode(model: nn.Module) -> None:
    """Put a network, wrapped or not, into training mode, except for the BatchNorm layers that are frozen."""
    model.train()
    for module in list(model.modules()):
        for name in vars(module).get(_FROZEN_NORMS, ()):
            module.get_submodule(name).eval()


def classifier_names(model: nn.Module) -> list[str]:
    """Return the parameters' names of the classifier (or of several, where a network has them).

    Raises:
        ConfigError: it has none.
    """
    found = model.get_classifier()  # type: ignore[operator]
    parts = found if isinstance(found, tuple | list) else [found]
    own = {id(parameter) for part in parts for parameter in part.parameters()}
    names = [name for name, parameter in model.named_parameters() if id(parameter) in own]
    if not names:
        raise ConfigError(f"model.name: {type(model).__name__} has no classifier that could be trained; choose another")
    return names


def _grouped(model: nn.Module, names: list[str]) -> list[list[str]]:
    """Return the stages of parameters, or of names like theirs."""
    matcher = model.group_matcher(coarse=True)  # type: ignore[operator]
    groups = group_with_matcher(((name, name) for name in names), matcher)
    head = set(classifier_names(model))
    body = [[name for name in groups[number] if name not in head] for number in sorted(groups)]
    if len(body) > 1:
        beside_head = body.pop()
        body[-1] += beside_head
    return [*(stage for stage in body if stage), [name for name in names if name in head]]


def _last(stages: list[list[str]], count: int) -> list[list[str]]:
    return stages[len(stages) - count :]


def _flat(stages: Iterable[list[str]]) -> list[str]:
    return [name for stage in stages for name in stage]
