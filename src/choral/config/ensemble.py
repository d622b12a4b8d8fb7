"""The members of an ensemble: listed, or generated from architectures, seeds, folds and so on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from annotated_types import Ge
from pydantic import Field, model_validator

from choral.config.fields import NAME_PATTERN, Expected, NonBinding, NonNegativeInt, PositiveInt, check
from choral.config.section import Section

_AnyOrNone = Annotated[int, Ge(0), Expected("1 or more, or 0: none")]
_TWO_OR_NONE = "2 or more, or 0: none"
_TwoOrNone = Annotated[int, Ge(0), Expected(_TWO_OR_NONE)]


class MemberConfig(Section, frozen=True):
    """One member of the ensemble."""

    name: str
    """Its directory and its row in tables: letters, digits, dot, dash, underscore."""
    set: Mapping[str, Any] = Field(default_factory=dict)
    """Overrides of the run's config, as dotted keys: {model.name: ..., seed: 1}."""

    @model_validator(mode="after")
    def _check_name(self) -> Self:
        legal = NAME_PATTERN.fullmatch(self.name) is not None
        check(legal, "ensemble.members", f"'{self.name}' is not a member name: use letters, digits, '.', '_' and '-'")
        return self


class EnsembleConfig(Section, frozen=True):
    """The members, trained as parallel jobs.

    Listed members and generators are multiplied: two architectures and five folds are ten members. `choral.config.members`
    describes their names and overrides. Without members and generators, the run is a single model called `model`.
    """

    members: tuple[MemberConfig, ...] = ()
    """Members listed one by one, each with its overrides."""
    architectures: tuple[str, ...] = ()
    """Values of model.name, one member each."""
    resolutions: tuple[int, ...] = ()
    """Values of data.image_size, one member each."""
    grid: Mapping[str, Any] = Field(default_factory=dict)
    """Keys with lists of values, all combined: {train.lr: [1e-3, 3e-4], train.epochs: [5, 10]}."""
    seeds: _AnyOrNone = 0
    """Number of members that differ only in their seed: the run's seed and the following ones."""
    folds: _TwoOrNone = 0
    """Number of cross-validation folds of the training split, stratified by class, with groups kept together. Each member is
    trained with its own seed on all folds but one and predicts the one left out (out-of-fold predictions). All members
    validate on the validation split, so that no member has seen the fold it predicts."""
    bagging: _AnyOrNone = 0
    """Number of bootstrap samples of the training split, one member each, with its own seed (Breiman 1996). Each member
    predicts the samples it was not trained on (out-of-bag predictions)."""
    bootstrap: Literal["poisson", "exact"] = "poisson"
    """poisson: a hash of each key decides how often the sample occurs, Poisson distributed with mean 1 (Oza and Russell
    2001). exact: as many draws with replacement as there are samples. If the data have groups, whole groups are drawn."""
    boosting: _AnyOrNone = 0
    """Number of members trained one after the other, each on samples weighted by the errors of the previous ones (SAMME, Zhu
    et al. 2009). Ends early at a member no better than chance. Cannot be combined with other generators."""
    boosting_by: Literal["loss", "sampling"] = "loss"
    """loss: the weights multiply the losses. sampling: they are the probabilities with which samples are drawn."""
    snapshots: _TwoOrNone = 0
    """Number of members from each training: its schedule is repeated this many times within the same number of steps, and
    the weights at the end of each cycle are a member (Huang et al. 2017)."""
    max_parallel: NonBinding[NonNegativeInt] = 0
    """Members trained at the same time; 0: as many as the devices (on a CPU: the cores) allow."""
    devices_per_member: NonBinding[PositiveInt] = 1
    """GPUs of each member, one rank each; on a CPU: ranks."""
    retries: NonBinding[NonNegativeInt] = 1
    """How often a failed member is started again."""

    @model_validator(mode="after")
    def _check_generators(self) -> Self:
        for key in ("folds", "snapshots"):
            check(getattr(self, key) != 1, f"ensemble.{key}", f"expected {_TWO_OR_NONE}, got 1")
        check(not (self.folds and self.bagging), "ensemble.bagging", "not together with folds: choose one")
        generators = ("members", "architectures", "resolutions", "grid", "seeds", "folds", "bagging", "snapshots")
        others = [key for key in generators if getattr(self, key)]
        check(
            not (self.boosting and others),
            "ensemble.boosting",
            f"cannot be combined with other generators; remove {', '.join(others)}",
        )
        for key, values in self.grid.items():
            is_list = isinstance(values, list | tuple) and len(values) > 0
            check(is_list, f"ensemble.grid.{key}", f"expected a list of values, got '{values}'")
        check(not (self.seeds and "seed" in self.grid), "ensemble.grid.seed", "not together with seeds: choose one")
        for key in ("architectures", "resolutions"):
            values = getattr(self, key)
            check(len(set(values)) == len(values), f"ensemble.{key}", "a value is listed twice")
        return self
