"""Predictions to combine: members of a ledger, under one view or averaged over several, and external predictions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from choral.core.errors import ConfigError, did_you_mean
from choral.ensembles.external_predictions import ExternalPredictions
from choral.ensembles.rules import average_views, soft_vote
from choral.inference.ledger import Ledger
from choral.inference.views import expand_views

LEARNED = "learned"
"""The value of --views that requests view weights learned on validation data."""


@dataclass(frozen=True)
class MemberPredictions:
    """Predictions of several members on the same samples, read block by block.

    Attributes:
        ledger: holds keys, labels and the members' predictions.
        ledger_members: members of the ledger that are used.
        views: of the ledger; a member's prediction is the mean over them.
        external: predictions of other tools, as further members.
        view_weights: weights of that mean; empty: equal.
    """

    ledger: Ledger
    ledger_members: tuple[str, ...]
    views: tuple[str, ...]
    external: tuple[ExternalPredictions, ...] = ()
    view_weights: tuple[float, ...] = ()

    @property
    def members(self) -> tuple[str, ...]:
        """Names of all members, in the order of the stacks."""
        return (*self.ledger_members, *(other.name for other in self.external))

    @property
    def task(self) -> str:
        """multiclass, multilabel or regression."""
        return self.ledger.meta.task

    def blocks(self) -> Iterator[tuple[NDArray[Any], NDArray[np.float32]]]:
        """Yield labels and (members, n, classes) float32 predictions of consecutive samples."""
        labels, start = self.ledger.labels, 0
        for views in zip(*(self.ledger.blocks(view, self.ledger_members) for view in self.views), strict=True):
            stack = views[0] if len(views) == 1 else average_views(views, self.view_weights)
            rows = slice(start, start + stack.shape[1])
            if self.external:
                stack = np.concatenate([stack, [other.predictions[rows] for other in self.external]])
            yield labels[rows], stack
            start = rows.stop


@dataclass(frozen=True)
class ViewPredictions(MemberPredictions):
    """The same predictions with views in place of members: a view's prediction is the mean over the members."""

    @property
    def members(self) -> tuple[str, ...]:
        """Names of the views, in the order of the stacks."""
        return self.views

    def blocks(self) -> Iterator[tuple[NDArray[Any], NDArray[np.float32]]]:
        """Yield labels and (views, n, classes) float32 predictions of consecutive samples."""
        labels, start = self.ledger.labels, 0
        by_view = (map(soft_vote, self.ledger.blocks(view, self.ledger_members)) for view in self.views)
        for views in zip(*by_view, strict=True):
            rows = slice(start, start + len(views[0]))
            yield labels[rows], np.stack(views)
            start = rows.stop


def select_members(ledger: Ledger, names: Sequence[str]) -> tuple[str, ...]:
    """Return the named members of a ledger, in the ledger's order; no names: all members.

    Raises:
        ConfigError: there is no such member; the message suggests the nearest name.
    """
    for name in names:
        if name not in ledger.members:
            near = did_you_mean(name, ledger.members)
            raise ConfigError(
                f"--members: no member '{name}' in {ledger.path}.{near} It has: {', '.join(ledger.members)}"
            )
    return tuple(name for name in ledger.members if name in names) if names else ledger.members


def select_views(ledger: Ledger, names: Sequence[str]) -> tuple[str, ...]:
    """Return the named views of a ledger; no names: the average over views if the ledger has it, else the identity.

    Args:
        ledger: holds the views.
        names: in any spelling that expands to these views, or LEARNED alone, which is returned.

    Raises:
        ConfigError: the ledger holds no such view, or the average is combined with other views.
    """
    if LEARNED in names:
        if len(names) > 1:
            raise ConfigError(f"--views: {LEARNED} chooses among all kept views; give it alone")
        return (LEARNED,)
    names = [name for item in names for name in ((item,) if item in (*ledger.views, "tta") else expand_views(item))]
    default = next(name for name in ("tta", "identity", ledger.views[0]) if name in ledger.views)
    for name in names:
        if name not in ledger.views:
            kept = "" if name == "tta" else "; `choral evaluate` keeps single views with evaluate.keep_views=true"
            raise ConfigError(f"--views: {ledger.path} holds no view '{name}', only {', '.join(ledger.views)}{kept}")
    if "tta" in names and len(names) > 1:
        raise ConfigError("--views: tta is already a mean over views; give it alone, or list the views")
    return tuple(dict.fromkeys(names)) or (default,)
